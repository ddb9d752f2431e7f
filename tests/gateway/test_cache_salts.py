"""Each tenant has a salt of its own, which nobody without the pepper can tell."""

import re

from gateway.cache_salts import cache_salts


def test_a_salt_is_a_tenants_own_and_stays():
    salt = cache_salts(b"pepper")
    assert salt(1) == salt(1) == cache_salts(b"pepper")(1)
    assert len({salt(1), salt(2), cache_salts(b"another")(1)}) == 3


def test_a_salt_has_no_character_that_an_engine_may_choke_on():
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", cache_salts(b"p")(each)) for each in range(200))
