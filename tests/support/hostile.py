"""Bodies made to break, stall or fool whoever reads them; each must be refused, quickly.

Made of patterns times places, so that a reader that is careful in one place only is found. Small ones
first, then some of megabytes.
"""

from collections.abc import Iterator

M = 1 << 20
#: What is no JSON value, or none that may pass.
BROKEN_VALUES: dict[str, bytes] = {
    "NaN": b"NaN", "Infinity": b"Infinity", "minus Infinity": b"-Infinity", "nan": b"nan",
    "undefined": b"undefined", "True": b"True", "tru": b"tru", "leading zero": b"01",
    "plus": b"+1", "no digit before the point": b".5", "no digit after the point": b"1.",
    "hex": b"0x10", "open exponent": b"1e", "two points": b"1.2.3", "minus alone": b"-",
    "underscore": b"1_000", "single quotes": b"'a'", "no quotes": b"a", "open string": b'"a',
    "raw line end in a string": b'"a\nb"', "raw NUL in a string": b'"\0"', "odd escape": b'"\\x41"',
    "short unicode escape": b'"\\u12"', "bad unicode escape": b'"\\u12g4"',
    "lone high surrogate": b'"\\ud800"', "lone low surrogate": b'"\\udc00"',
    "surrogates swapped": b'"\\udc00\\ud800"', "two high surrogates": b'"\\ud800\\ud800"',
    "high byte": b'"\xff"', "cut character": b'"\xc3"', "overlong slash": b'"\xc0\xaf"',
    "encoded surrogate": b'"\xed\xa0\x80"', "past the last character": b'"\xf4\x90\x80\x80"',
    "open array": b"[1", "open object": b'{"a":1', "array closed by a brace": b"[1}",
    "object closed by a bracket": b'{"a":1]', "trailing comma in an array": b"[1,]",
    "trailing comma in an object": b'{"a":1,}', "leading comma": b"[,1]", "two commas": b"[1,,2]",
    "no comma": b"[1 2]", "no colon": b'{"a" 1}', "two colons": b'{"a"::1}', "key that is a number": b"{1:2}",
    "key without quotes": b"{a:1}", "no value": b'{"a":}', "comment": b"/* */ 1", "line comment": b"1 // x",
    "65 arrays deep": b"[" * 65 + b"]" * 65, "65 objects deep": b'{"a":' * 65 + b"1" + b"}" * 65,
    "mixed and deep": b'[{"a":' * 40 + b"1" + b"}]" * 40, "1000 deep": b"[" * 1000 + b"]" * 1000,
    "100000 deep and open": b"[" * 100_000, "form feed for a space": b"\x0c1", "vertical tab": b"\x0b1",
    "no-break space": b"\xc2\xa01", "BOM inside": b"\xef\xbb\xbf1",
}  # fmt: skip
#: Where a value may stand; the field that is read, an unknown one, and inside others.
PLACES: dict[str, bytes] = {
    "as the prompt": b'{"model":"MODEL","messages":%b}',
    "inside a message": b'{"model":"MODEL","messages":[{"role":"user","content":%b}]}',
    "in an unknown field": b'{"model":"MODEL","messages":[],"zzz":%b}',
    "before what is read": b'{"zzz":[%b],"model":"MODEL","messages":[]}',
    "as stream_options": b'{"model":"MODEL","messages":[],"stream":true,"stream_options":%b}',
}
#: Values of a wrong type for what is read.
WRONG: dict[str, tuple[bytes, ...]] = {
    "model": (b"1", b"null", b"[]", b"{}", b"true", b'""', b'"' + b"m" * 300 + b'"'),
    "messages": (b"1", b"null", b'"hi"', b"{}", b"true"),
    "stream": (b"1", b'"true"', b"[]", b"{}", b"0", b"1.0"),
    "stream_options": (b"1", b'"x"', b"[]", b"true", b'{"include_usage":1}', b'{"include_usage":"true"}', b'{"continuous_usage_stats":[]}'),
    "n": (b"0", b"-1", b"9", b"1.0", b'"2"', b"true", b"[]", b"1" * 400, b"1e3"),
    "best_of": (b"0", b"-1", b"99", b"1.5", b'"2"', b"false"),
    "max_tokens": (b"-1", b"1.0", b'"5"', b"true", b"[]", b"{}", b"9" * 40, b"2147483648", b"1e9"),
    "max_completion_tokens": (b"-1", b"1.0", b'"5"', b"true", b"9" * 400),
    "user": (b"1", b"[]", b"{}", b"true"),
}  # fmt: skip
GUARDED = (
    "model", "messages", "stream", "n", "best_of", "max_tokens", "max_completion_tokens", "user",
    "priority", "cache_salt", "kv_transfer_params", "request_id", "chat_template", "prompt_embeds",
)  # fmt: skip
LARGE: dict[str, bytes] = {
    "brackets": b"[" * (8 * M), "braces": b'{"":' * (8 * M // 4), "quotes": b'"' * (8 * M),
    "backslashes": b'{"a":"' + b"\\" * (8 * M - 9), "high bytes": b"\xff" * (8 * M), "spaces": b" " * (8 * M),
    "zeros": b"0" * (8 * M), "NULs": b"\0" * (8 * M), "a comma each": b"," * (8 * M),
    "tiny keys": b'{"model":"MODEL","messages":[]' + b',"":0' * (8 * M // 5 - 10) + b"}",
    "one key again and again": b'{"model":"MODEL","messages":[]' + b',"n":1' * (8 * M // 6 - 10) + b"}",
    "one long key": b'{"model":"MODEL","messages":[],"' + b"k" * (8 * M - 60) + b'":1}',
    "one key of escapes": b'{"model":"MODEL","messages":[],"' + b"\\n" * (4 * M - 60) + b'":1}',
    "a number as the model": b'{"messages":[],"model":' + b"1" * (8 * M - 60) + b"}",
    "a long model": b'{"messages":[],"model":"' + b"m" * (8 * M - 60) + b'"}',
    "a long user": b'{"model":"MODEL","messages":[],"user":"' + b"u" * (8 * M - 60) + b'"}',
    "a long number of choices": b'{"model":"MODEL","messages":[],"n":' + b"1" * (8 * M - 60) + b"}",
    "NaN at the end": b'{"model":"MODEL","messages":[' + b"[0]," * (2 * M - 30) + b"NaN]}",
    "open at the end": b'{"model":"MODEL","messages":[' + b"{}," * (2 * M) + b"{}]",
    "string open at the end": b'{"model":"MODEL","messages":["' + b"\\\\" * (4 * M - 60),
    "deep at the end": b'{"model":"MODEL","messages":["' + b"x" * (7 * M) + b'",' + b"[" * 70 + b"]" * 70 + b"]}",
    "values without commas": b'{"model":"MODEL","messages":' + b"[]" * (4 * M - 60) + b"}",
    "bad text at the end": b'{"model":"MODEL","messages":["' + b"x" * (7 * M) + b'\xc3"]}',
    "large options": b'{"model":"MODEL","messages":[],"stream_options":{' + b'"":0,' * (M - 60) + b'"":0}}',
}  # fmt: skip


def hostile(model: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, body); over 400 of them."""
    for place, around in PLACES.items():
        for name, value in BROKEN_VALUES.items():
            yield f"{name} {place}", around.replace(b"%b", value).replace(b"MODEL", model)
    base = b'{"model":"%b","messages":[]' % model
    for key, values in WRONG.items():
        for at, value in enumerate(values):
            others = b"".join(
                b',"%b":%b' % (name, right)
                for name, right in ((b"model", b'"%b"' % model), (b"messages", b"[]"))
                if name != key.encode()
            )
            yield f"{key} of wrong type {at}", b'{"%b":%b%b}' % (key.encode(), value, others)
    for key in GUARDED:
        escaped = b"\\u%04x%b" % (ord(key[0]), key[1:].encode())
        for name, second in (("twice", key.encode()), ("twice, once escaped", escaped)):
            yield f"{key} {name}", b'%b,"%b":1,"%b":1}' % (base, key.encode(), second)
    for at, body in enumerate(
        (b"", b" ", b"null", b"1", b'"x"', b"[]", b"true", b"{}", b"{", b"}", b"{}{}", b"\xef\xbb\xbf" + base + b"}",
         (base + b"}").decode().encode("utf-16"), base + b"}\0", base + b"}x", base, base + b",}", b"--" + base,
         base + b',"x":1' * 1100 + b"}", base + b"}" + base + b"}")
    ):  # fmt: skip
        yield f"no object {at}", body
    for name, body in LARGE.items():
        yield f"8 MiB: {name}", body.replace(b"MODEL", model)
