"""Listed origins are granted what they ask for; nobody else learns anything."""

from gateway.wire.cors import Cors

CORS = Cors(frozenset({b"https://app.example.com"}))
LISTED = {b"origin": b"https://app.example.com"}
ASKING = LISTED | {b"access-control-request-method": b"POST"}


def test_a_listed_origin_is_named_and_caches_are_told() -> None:
    grants = dict(CORS.grants(LISTED))
    assert grants[b"access-control-allow-origin"] == b"https://app.example.com"
    assert grants[b"vary"] == b"origin"
    assert b"x-request-id" in grants[b"access-control-expose-headers"]


def test_any_other_origin_is_not() -> None:
    for origin in (
        b"null",
        b"*",
        b"https://app.example.com.evil.example",
        b"http://app.example.com",
    ):
        assert CORS.grants({b"origin": origin}) == [(b"vary", b"origin")]
        assert CORS.preflight("OPTIONS", ASKING | {b"origin": origin}) is None
    assert CORS.grants({}) == [(b"vary", b"origin")]


def test_only_a_browsers_question_is_a_preflight() -> None:
    assert CORS.preflight("POST", ASKING) is None
    assert CORS.preflight("OPTIONS", LISTED) is None
    assert CORS.preflight("OPTIONS", ASKING) is not None


def test_headers_are_allowed_when_they_are_names() -> None:
    def allowed(asked: bytes) -> bytes | None:
        pairs = CORS.preflight("OPTIONS", ASKING | {b"access-control-request-headers": asked})
        return dict(pairs or ()).get(b"access-control-allow-headers")

    assert allowed(b"authorization,content-type") == b"authorization,content-type"
    assert allowed(b"") is None
    assert allowed(b"a;b") is None
    assert allowed(b"x" * 3000) is None
