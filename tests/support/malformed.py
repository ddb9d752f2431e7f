"""Requests as bytes, with what must come of each: the corpus of smuggled, malformed and odd ones.

Every refused case is a head that two parsers may read in two ways, followed by bytes that one of
the readings would take for a second request, whose prompt says ``SMUGGLED``. Whatever comes back,
no engine may ever see that word, a body that is not one of ours, or more requests than ``forwarded``.
Behind another proxy the answers may be that proxy's; what engines may see stays the same, with one
forgiveness: a proxy may have repaired a refused request into one plain one.
"""

import re
from dataclasses import dataclass

PLAIN = b"PLAIN-PROMPT"
SMUGGLED = b"SMUGGLED-PROMPT"
PATH = b"/v1/chat/completions"
#: A body that is read to its end and then refused, so that nothing but framing is judged.
NOT_JSON = b"not json"


@dataclass(frozen=True)
class Case:
    """``status``: of the first answer. ``answers``: how many come. ``kept``: whether the connection
    serves another request afterwards. ``forwarded``: plain requests that an engine sees.
    ``sent_whole``: False where the client stops in the middle and waits.
    """

    name: str
    data: bytes
    status: int
    answers: int = 1
    kept: bool = False
    forwarded: int = 0
    sent_whole: bool = True


def body_of(model: bytes, prompt: bytes) -> bytes:
    return (
        b'{"model":"%b","messages":[{"role":"user","content":"%b"}],"max_tokens":4}'
        % (model, prompt)
    )  # fmt: skip


def unsalted(body: bytes) -> bytes:
    """A body as the client wrote it: without the salt that the gateway puts first."""
    return re.sub(rb'\A\{"cache_salt":"[\w-]{43}",', b"{", body)


def request(
    key: bytes,
    body: bytes,
    *lines: bytes,
    method: bytes = b"POST",
    target: bytes = PATH,
    version: bytes = b"HTTP/1.1",
    sized: bool = True,
) -> bytes:
    """A whole request; ``lines`` are extra header lines without their ends."""
    head = [
        b"%b %b %b" % (method, target, version),
        b"Host: gateway.test",
        b"Authorization: Bearer " + key,
        b"Content-Type: application/json",
        *lines,
    ]
    if sized:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def chunked(body: bytes, size: int = 7) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"


def cases(key: bytes, model: bytes) -> list[Case]:
    """The whole corpus for one key and one model."""
    return [
        *_lengths(key, model),
        *_codings(key, model),
        *_chunks(key, model),
        *_heads(key, model),
        *_request_lines(key, model),
        *_targets(key, model),
        *_odd_but_right(key, model),
        *_refused_and_kept(key, model),
    ]


class _Made:
    """The pieces of one key and model, and the refused case made of them."""

    def __init__(self, key: bytes, model: bytes) -> None:
        self.key = key
        self.body = body_of(model, PLAIN)
        self.hidden = request(key, body_of(model, SMUGGLED))
        self.length = b"Content-Length: %d" % len(self.body)

    def refused(self, name: str, *lines: bytes, body: bytes | None = None) -> Case:
        """Unsized but for ``lines``; the hidden request follows the body."""
        head = request(self.key, b"", *lines, sized=False)
        return Case(name, head + (self.body if body is None else body) + self.hidden, 400)

    def raw(self, name: str, data: bytes, status: int = 400) -> Case:
        return Case(name, data + self.hidden, status)

    def replaced(self, name: str, old: bytes, new: bytes, status: int = 400) -> Case:
        """A right request with one thing wrong."""
        right = request(self.key, self.body)
        assert old in right
        return self.raw(name, right.replace(old, new, 1), status)


def _lengths(key: bytes, model: bytes) -> list[Case]:
    made = _Made(key, model)
    length = len(made.body)
    odd = {
        "length with a plus": b"+%d" % length,
        "length with a minus": b"-%d" % length,
        "length in hex": b"0x%x" % length,
        "length with a fraction": b"%d.0" % length,
        "length with an underscore": b"1_0",
        "length with a leading zero": b"0%d" % length,
        "length of words": b"ten",
        "length empty": b"",
        "length with a space inside": b"1 0",
        "length list of equals": b"%d, %d" % (length, length),
        "length list of two": b"%d, 0" % length,
        "length in quotes": b'"%d"' % length,
        "length past 64 bits": b"18446744073709551617",
        "length of thirty digits": b"9" * 30,
        "length with an exponent": b"1e2",
        "length in other digits": b"\xd9\xa1\xd9\xa0",
        "length with a semicolon": b"%d;" % length,
    }
    return [
        *(made.refused(name, b"Content-Length: " + value) for name, value in odd.items()),
        made.refused("two equal lengths", made.length, made.length),
        made.refused("two lengths, zero first", b"Content-Length: 0", made.length),
        made.refused("two lengths, zero last", made.length, b"Content-Length: 0"),
        made.refused("two lengths, other case", made.length, b"CONTENT-LENGTH: 0"),
    ]


def _codings(key: bytes, model: bytes) -> list[Case]:
    made = _Made(key, model)
    last = b"0\r\n\r\n"
    odd = {
        "coding gzip": b"Transfer-Encoding: gzip",
        "coding identity": b"Transfer-Encoding: identity",
        "coding gzip, chunked": b"Transfer-Encoding: gzip, chunked",
        "coding chunked, identity": b"Transfer-Encoding: chunked, identity",
        "coding chunked, chunked": b"Transfer-Encoding: chunked, chunked",
        "coding xchunked": b"Transfer-Encoding: xchunked",
        "coding chunkedx": b"Transfer-Encoding: chunkedx",
        "coding in quotes": b'Transfer-Encoding: "chunked"',
        "coding with a vertical tab": b"Transfer-Encoding: \x0bchunked",
        "coding with a parameter": b"Transfer-Encoding: chunked;q=1",
        "coding empty": b"Transfer-Encoding:",
        "coding with a comma": b"Transfer-Encoding: chunked,",
        "coding with a comma first": b"Transfer-Encoding: ,chunked",
        "coding with space before the colon": b"Transfer-Encoding : chunked",
        "coding with a tab before the colon": b"Transfer-Encoding\t: chunked",
        "coding name with an underscore and a length": b"Transfer-Encoding: chunked\r\nTransfer_Encoding: x",
        "coding folded": b"Transfer-Encoding:\r\n chunked",
        "coding after a bare CR": b"X: y\rTransfer-Encoding: chunked",
        "coding after a bare LF": b"X: y\nTransfer-Encoding: chunked",
        "coding after a NUL": b"X: y\0Transfer-Encoding: chunked",
    }
    both = [
        made.refused("length and chunked", made.length, b"Transfer-Encoding: chunked", body=last),
        made.refused("chunked and length", b"Transfer-Encoding: chunked", made.length, body=last),
        made.refused(
            "chunked and a zero length", b"Transfer-Encoding: chunked", b"Content-Length: 0"
        ),
        made.refused(
            "two codings", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=last
        ),
        made.refused(
            "two codings, the second odd",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: cow",
            body=last,
        ),
        made.raw(
            "chunked in HTTP/1.0",
            request(key, b"", b"Transfer-Encoding: chunked", version=b"HTTP/1.0", sized=False)
            + last,
        ),
    ]
    single = [
        made.refused(name, line, made.length, body=last)
        if "underscore" in name
        else made.refused(name, line, body=last)
        for name, line in odd.items()
    ]
    return both + single


def _chunks(key: bytes, model: bytes) -> list[Case]:
    made = _Made(key, model)
    coding = b"Transfer-Encoding: chunked"
    size = b"%x" % len(made.body)
    odd = {
        "chunk size that is no hex": b"zz\r\n",
        "chunk size with 0x": b"0x" + size + b"\r\n",
        "chunk size with a plus": b"+" + size + b"\r\n",
        "chunk size with a minus": b"-1\r\n",
        "chunk size with a space": size + b" \r\n",
        "chunk size after a space": b" " + size + b"\r\n",
        "chunk size with an underscore": b"1_0\r\n",
        "chunk size empty": b"\r\n",
        "chunk size past 64 bits": b"10000000000000001\r\n",
        "chunk size of endless zeros": b"0" * 40 + b"\r\n",
        "chunk extension": size + b";a=b\r\n",
        "chunk extension with a quoted line end": size + b';a="\r\n\r\n"\r\n',
        "chunk size ended by a bare LF": size + b"\n",
        "chunk size ended by a bare CR": size + b"\r",
        "chunk size ended by CR CR LF": size + b"\r\r\n",
        "chunk size with a NUL": size + b"\0\r\n",
    }
    framed = {
        "chunk longer than said": b"3\r\nabcd\r\n0\r\n\r\n",
        "chunk without its end": b"3\r\nabc0\r\n\r\n",
        "chunk ended by a bare LF": b"3\r\nabc\n0\r\n\r\n",
        "trailer": chunked(made.body)[:-2] + b"X: y\r\n\r\n",
        "trailer with a length": chunked(made.body)[:-2] + b"Content-Length: 9\r\n\r\n",
        "last chunk with an extension": chunked(made.body)[:-5] + b"0;a\r\n\r\n",
        "last chunk ended by bare LFs": chunked(made.body)[:-5] + b"0\n\n",
    }
    return [
        *(
            made.refused(name, coding, body=line + made.body + b"\r\n0\r\n\r\n")
            for name, line in odd.items()
        ),
        *(made.refused(name, coding, body=body) for name, body in framed.items()),
        Case("chunked body past the limit", request(key, b"", coding, sized=False) + b"8000001\r\n", 413),
    ]  # fmt: skip


def _heads(key: bytes, model: bytes) -> list[Case]:
    made = _Made(key, model)
    host = b"Host: gateway.test"
    return [
        made.replaced("no host", host + b"\r\n", b""),
        made.replaced("two hosts", host, host + b"\r\nHost: other.test"),
        made.replaced("two equal hosts", host, host + b"\r\n" + host),
        made.replaced("empty host", host, b"Host:"),
        made.replaced("host with a user", host, b"Host: me@gateway.test"),
        made.replaced("host with a path", host, b"Host: gateway.test/x"),
        made.replaced("host with a query", host, b"Host: gateway.test?x"),
        made.replaced("host list", host, b"Host: gateway.test, other.test"),
        made.replaced("host with a space", host, b"Host: gateway.test other"),
        made.replaced("host port of letters", host, b"Host: gateway.test:http"),
        made.replaced("host with an open bracket", host, b"Host: [::1"),
        made.replaced("header folded by a space", host, host + b"\r\nX: a\r\n b"),
        made.replaced("header folded by a tab", host, host + b"\r\nX: a\r\n\tb"),
        made.replaced("first header folded", host, b" X: y\r\n" + host),
        made.replaced("space before a colon", host, host + b"\r\nX : y"),
        made.replaced("tab before a colon", host, host + b"\r\nX\t: y"),
        made.replaced("space in a header's name", host, host + b"\r\nX Y: z"),
        made.replaced("empty header name", host, host + b"\r\n: z"),
        made.replaced("line without a colon", host, host + b"\r\nnonsense"),
        made.replaced("high byte in a name", host, host + b"\r\nX\xff: y"),
        made.replaced("quote in a name", host, host + b'\r\nX": y'),
        made.replaced("bare LF between headers", host, host + b"\nX: y"),
        made.replaced("bare CR between headers", host, host + b"\rX: y"),
        made.replaced("CR CR LF after a header", host, host + b"\r"),
        made.replaced("NUL in a value", host, host + b"\r\nX: a\0b"),
        made.replaced("NUL in a name", host, host + b"\r\nX\0: b"),
        made.replaced("bell in a value", host, host + b"\r\nX: a\x07b"),
        made.replaced("DEL in a value", host, host + b"\r\nX: a\x7fb"),
        made.replaced("two credentials", host, host + b"\r\nAuthorization: Bearer other"),
        made.raw("bare LFs throughout", request(key, made.body).replace(b"\r\n", b"\n")),
        made.replaced("other expectation", host, host + b"\r\nExpect: 200-maybe", 417),
        made.replaced("two expectations", host, host + b"\r\nExpect: 100-continue, x", 417),
        made.replaced("too many headers", host, host + b"\r\nX: y" * 120, 431),
        made.replaced("too large a head", host, host + b"\r\nX: " + b"y" * 40_000, 431),
        made.replaced("length past the limit", made.length, b"Content-Length: 9000000", 413),
    ]  # fmt: skip


def _request_lines(key: bytes, model: bytes) -> list[Case]:
    made = _Made(key, model)
    line = b"POST " + PATH + b" HTTP/1.1"
    odd = {
        "lower-case method": b"post " + PATH + b" HTTP/1.1",
        "unknown method": b"BREW " + PATH + b" HTTP/1.1",
        "method with a space before": b" " + line,
        "method with a NUL": b"PO\0ST " + PATH + b" HTTP/1.1",
        "CONNECT": b"CONNECT gateway.test:80 HTTP/1.1",
        "TRACE": b"TRACE / HTTP/1.1",
        "no version": b"POST " + PATH,
        "HTTP/0.9": b"GET /",
        "HTTP/1.2": b"POST " + PATH + b" HTTP/1.2",
        "HTTP/2.0": b"POST " + PATH + b" HTTP/2.0",
        "HTTP/01.1": b"POST " + PATH + b" HTTP/01.1",
        "lower-case version": b"POST " + PATH + b" http/1.1",
        "version without a slash": b"POST " + PATH + b" HTTP 1.1",
        "two spaces": b"POST  " + PATH + b" HTTP/1.1",
        "tab for a space": b"POST\t" + PATH + b" HTTP/1.1",
        "space after the version": line + b" ",
        "two versions": line + b" HTTP/1.1",
        "space in the target": b"POST " + PATH + b" x HTTP/1.1",
    }
    return [
        *(made.replaced(name, line, new) for name, new in odd.items()),
        made.raw("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        made.raw("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n"),
    ]


def _targets(key: bytes, model: bytes) -> list[Case]:
    made = _Made(key, model)
    odd = {
        "absolute form": b"http://gateway.test" + PATH,
        "absolute form of another host": b"http://other.test" + PATH,
        "authority form": b"gateway.test:80",
        "asterisk form": b"*",
        "dot dot": b"/v1/x/../chat/completions",
        "dot dot at the end": PATH + b"/..",
        "dot": b"/v1/./chat/completions",
        "dot dot with a parameter": b"/v1/..;x/chat/completions",
        "dot with a parameter": b"/v1/.;x/chat/completions",
        "escaped dots": b"/v1/%2e%2e/chat/completions",
        "half escaped dots": b"/v1/.%2E/chat/completions",
        "doubly escaped dots": b"/v1/%252e%252e/chat/completions",
        "escaped slash": b"/v1%2fchat/completions",
        "doubly escaped slash": b"/v1%252fchat/completions",
        "escape that is none": b"/v1/chat/%zz",
        "escape cut short": b"/v1/chat/completions%2",
        "escaped NUL": PATH + b"%00",
        "escaped line end": PATH + b"%0d%0aX:y",
        "overlong UTF-8 slash": b"/v1%c0%afchat/completions",
        "two slashes": b"//v1/chat/completions",
        "two slashes inside": b"/v1//chat/completions",
        "backslash": b"/v1\\chat\\completions",
        "escaped backslash": b"/v1%5cchat/completions",
        "fragment": PATH + b"#x",
        "raw high byte": PATH + b"\xff",
        "DEL in the target": PATH + b"\x7f",
    }
    return [
        *(made.replaced(name, PATH, new) for name, new in odd.items()),
        made.replaced("target past the limit", PATH, PATH + b"?" + b"x" * 9000, 414),
    ]


def _odd_but_right(key: bytes, model: bytes) -> list[Case]:
    made = _Made(key, model)
    plain = request(key, made.body)
    in_chunks = request(key, b"", b"Transfer-Encoding: Chunked", sized=False)
    upgrade = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__"
    )
    return [
        Case("plain", plain, 200, kept=True, forwarded=1),
        Case("empty line before the request", b"\r\n\r\n" + plain, 200, kept=True, forwarded=1),
        Case("two, the second ahead of its turn", plain * 2, 200, 2, kept=True, forwarded=2),
        Case("five ahead of their turn", plain * 5, 200, 5, kept=True, forwarded=5),
        Case("chunks", in_chunks + chunked(made.body), 200, kept=True, forwarded=1),
        Case("chunks of one byte", in_chunks + chunked(made.body, 1), 200, kept=True, forwarded=1),
        Case("chunks, then another", in_chunks + chunked(made.body) + plain, 200, 2, kept=True, forwarded=2),
        Case("chunk size with zeros before", in_chunks + b"000" + b"%X\r\n" % len(made.body) + made.body + b"\r\n0\r\n\r\n", 200, kept=True, forwarded=1),
        Case("close is obeyed", request(key, made.body, b"Connection: close") + made.hidden, 200, forwarded=1),
        Case("HTTP/1.0", request(key, made.body, version=b"HTTP/1.0") + made.hidden, 200, forwarded=1),
        Case("HTTP/1.0 that asks to be kept", request(key, made.body, b"Connection: keep-alive", version=b"HTTP/1.0") + made.hidden, 200, forwarded=1),
        Case("offer of h2c", request(key, made.body, upgrade), 200, kept=True, forwarded=1),
        Case("offer of a websocket", request(key, made.body, b"Connection: upgrade", b"Upgrade: websocket"), 200, kept=True, forwarded=1),
        Case("connection names other headers", request(key, made.body, b"Connection: authorization, content-length, x"), 200, kept=True, forwarded=1),
        Case("claims of another proxy", request(key, made.body, b"X-Forwarded-For: 1.2.3.4", b"X-Forwarded-Host: other", b"Forwarded: for=1.2.3.4", b"X-Original-URL: /admin", b"X-Rewrite-URL: /admin", b"X-HTTP-Method-Override: DELETE"), 200, kept=True, forwarded=1),
        Case("parameters in the query", plain.replace(PATH, PATH + b"?a=%2f..%zz//", 1), 200, kept=True, forwarded=1),
        Case("spaces around a value", request(key, made.body, b"X:  \t y \t "), 200, kept=True, forwarded=1),
        Case("HEAD of a right path", request(key, b"", method=b"HEAD", target=b"/healthz", sized=False), 200, kept=True),
    ]  # fmt: skip


def _refused_and_kept(key: bytes, model: bytes) -> list[Case]:
    """Well framed, and refused above the framing: the connection goes on."""
    made = _Made(key, model)
    kept = {
        "unknown path": (request(key, made.body, target=b"/v1/nothing"), 404),
        "path of another case": (request(key, made.body, target=b"/V1/chat/completions"), 404),
        "slash at the end": (request(key, made.body, target=PATH + b"/"), 404),
        "parameter in the path": (request(key, made.body, target=PATH + b";x=y"), 404),
        "escaped letters in the path": (request(key, made.body, target=b"/v1/%63hat/completions"), 404),
        "admin path on this port": (request(key, made.body, target=b"/admin/v1/keys"), 404),
        "engine's own path": (request(key, made.body, target=b"/tokenize"), 404),
        "GET where POST is": (request(key, b"", method=b"GET", sized=False), 405),
        "GET with a body": (request(key, made.body, method=b"GET"), 405),
        "DELETE where POST is": (request(key, b"", method=b"DELETE"), 405),
        "empty body": (request(key, b""), 400),
        "no length and no body": (request(key, b"", sized=False), 400),
        "body that is no JSON": (request(key, NOT_JSON), 400),
        "wrong key": (request(b"tf_live_wrong", made.body), 401),
        "body that holds a request": (request(key, made.hidden), 400),
    }  # fmt: skip
    return [Case(name, data, status, kept=True) for name, (data, status) in kept.items()]
