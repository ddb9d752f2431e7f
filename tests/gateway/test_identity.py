"""Keys: the shape, the checksum offline, and what is kept of one."""

import random

from hypothesis import given
from hypothesis import strategies as st

from gateway import identity
from gateway.identity import ALPHABET

PEPPER = b"pepper"


def minted(seed: int = 1) -> identity.MintedKey:
    return identity.mint("live", random.Random(seed).randbytes)


def test_a_key_has_the_documented_shape_and_parses_to_its_kid() -> None:
    key = minted()
    prefix, env, kid, rest = key.token.split("_")
    assert (prefix, env, len(kid), len(rest)) == ("tf", "live", 10, 49)
    assert identity.parse(key.token) == key.kid == kid


@given(seed=st.integers(0, 2**32), at=st.integers(0, 200), char=st.sampled_from(ALPHABET + "_-"))
def test_every_single_typo_is_refused_offline(seed: int, at: int, char: str) -> None:
    token = minted(seed).token
    at %= len(token)
    wrong = token[:at] + char + token[at + 1 :]
    assert wrong == token or identity.parse(wrong) is None


@given(st.text(max_size=120))
def test_any_text_parses_or_does_not_and_never_raises(text: str) -> None:
    assert identity.parse(text) is None
    assert len(identity.digest(PEPPER, text)) == 32


def test_nothing_may_stand_before_or_after_a_key() -> None:
    token = minted().token
    for wrong in (token + "\n", " " + token, token + "0", token.upper(), ""):
        assert identity.parse(wrong) is None


def test_a_digest_depends_on_pepper_and_token_and_matches_only_itself() -> None:
    mine = identity.digest(PEPPER, minted(1).token)
    assert identity.matches(mine, identity.digest(PEPPER, minted(1).token))
    assert not identity.matches(mine, identity.digest(PEPPER, minted(2).token))
    assert not identity.matches(mine, identity.digest(b"other", minted(1).token))


def test_secrets_use_all_256_bits_and_differ() -> None:
    tokens = {minted(seed).token for seed in range(1_000)}
    assert len(tokens) == 1_000
    assert identity.KID_LENGTH == 10
    assert 62**identity.SECRET_LENGTH > 2**256


def test_a_fingerprint_tells_peppers_apart_without_showing_them() -> None:
    assert identity.fingerprint(b"a") == identity.fingerprint(b"a")
    assert identity.fingerprint(b"a") != identity.fingerprint(b"b")
    assert "hunter2" not in identity.fingerprint(b"hunter2")
