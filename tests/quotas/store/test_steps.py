"""How steps reach a server: as functions, as scripts where those are forbidden, of two versions at once."""

import hiredis
import pytest

from quotas.buckets import TICKS
from quotas.calendar import FOREVER_MS
from quotas.errors import StoreUnavailable
from quotas.limits import Charge
from quotas.reservation import LEASE_MS
from quotas.store.redis import RedisStore
from quotas.store.steps import LIBRARY, Library, is_forgotten, read_part
from tests.support.limits import bucket, left, settlement, slots


@pytest.fixture
async def opened():
    stores = []

    async def open_one(url):
        stores.append(RedisStore(url, name="redis", owner="o1", timeout_s=2.0))
        await stores[-1].start()
        return stores[-1]

    yield open_one
    for store in stores:
        await store.close()


def calls(server, command):
    return server.admin.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)


async def one_life(store, tag):
    """Reserve and settle; what is left then."""
    charges = (Charge(bucket("k1"), 100), Charge(slots(), 1))
    verdict = await store.reserve(tag, "a", charges, 60)
    assert verdict == await store.reserve(tag, "a", charges, 60)
    store.settle(settlement(tag, "a", verdict.epoch, Charge(bucket("k1"), 40), Charge(slots(), 1)))
    assert await store.flush(2)
    return left((await store.reserve(tag, "b", [Charge(c.limit, 0) for c in charges], 60)).levels)


async def test_server_that_forbids_functions_is_given_scripts(own_valkey, opened):
    own_valkey.admin.acl_setuser(
        "teller", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-function"]
    )
    store = await opened(f"redis://teller:pw@127.0.0.1:{own_valkey.port}")

    assert await one_life(store, "t1") == [960, 2]

    assert calls(own_valkey, "evalsha") > 0
    assert calls(own_valkey, "fcall") == 0
    own_valkey.admin.script_flush()
    assert await one_life(store, "t2") == [960, 2]


async def test_library_is_loaded_once_and_stands_beside_another_version(own_valkey, opened):
    other = Library(LIBRARY.steps, lambda part: read_part(part) + b"\n-- of another version")
    LIBRARY.load(read_part)
    own_valkey.admin.function_load(other.source.decode())
    first, second = await opened(own_valkey.unix_url), await opened(own_valkey.tcp_url)

    assert await one_life(first, "t1") == [960, 2]
    assert await one_life(second, "t2") == [960, 2]

    assert len(own_valkey.admin.function_list()) == 2
    assert calls(own_valkey, "evalsha") == 0


async def test_library_that_does_not_compile_is_the_stores_unavailability(own_valkey, monkeypatch):
    monkeypatch.setattr(LIBRARY, "source", b"#!lua name=broken\nthis is no Lua")

    store = RedisStore(own_valkey.unix_url, name="redis", owner="o1")

    with pytest.raises(StoreUnavailable, match="refused: ERR"):
        await store.start()


def test_scripts_count_in_the_same_ticks_and_leases_as_the_rest():
    source = read_part("levels").decode()

    assert f"local TICKS = {TICKS}\n" in source
    assert f"local LEASE_MS, LEASES_KEPT_MS = {LEASE_MS}, " in source
    assert f"local FOREVER_MS = {FOREVER_MS}\n" in source


@pytest.mark.parametrize(
    ("said", "forgotten"),
    [
        ("NOSCRIPT No matching script.", True),
        ("ERR Function not found", True),
        ("ERR something else", False),
        ("READONLY You can't write against a read only replica.", False),
    ],
)
def test_what_a_server_forgot_is_told_from_what_it_refuses(said, forgotten):
    assert is_forgotten(hiredis.ReplyError(said)) is forgotten
