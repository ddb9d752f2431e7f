"""SQL to documents: limits as the stores take them, and increments that equal a full load."""

import copy
import random
from typing import Any

from sqlalchemy import event

from gateway.loader import Loader
from gateway.snapshot import Snapshot
from gateway.store import changes
from gateway.store.database import Database
from tests.support.applying import FULL, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres

__all__ = ["database_url", "db", "postgres"]


def contents(snapshot: Snapshot) -> tuple[Any, ...]:
    return (
        snapshot.version, snapshot.tenants, snapshot.projects, snapshot.keys, snapshot.models,
        snapshot.pools, snapshot.model_by_name,
    )  # fmt: skip


async def full(db: Database) -> Snapshot:
    snapshot = Snapshot()
    snapshot.apply(*await Loader(db, lambda: 2**62).full())
    return snapshot


async def test_limits_become_what_the_stores_take(db: Database) -> None:
    await apply(db, FULL)
    snapshot = await full(db)
    principals = [snapshot.principal(key_id) for key_id in snapshot.keys]
    names = {}
    for principal in principals:
        assert principal is not None
        names |= {(each.scope_name, each.dimension): each for each in principal.limits}
    requests = names["tenant acme", "requests"]
    assert (requests.algorithm, requests.capacity, requests.per_minute) == ("bucket", 50, 600)
    assert requests.scope == f"t{next(iter(snapshot.tenants))}"
    at_once = names["tenant acme", "concurrency"]
    assert (at_once.algorithm, at_once.capacity, at_once.per_minute) == ("concurrency", 32, 0)
    tokens = names["project acme/bot", "tokens"]
    assert (tokens.capacity, tokens.per_minute) == (100_000, 100_000)
    assert ("key acme/bot/any", "requests") in names


async def test_documents_carry_what_the_file_said(db: Database) -> None:
    await apply(db, FULL)
    snapshot = await full(db)
    (model,) = snapshot.models.values()
    assert (model.upstream, model.context_tokens, model.timeouts.gap_s) == (
        "meta/llama", 131_072, 60,
    )  # fmt: skip
    assert model.price is not None
    assert model.price.nano == {
        "input": 100_000_000,
        "cached_input": 50_000_000,
        "output": 400_000_000,
    }
    first, second = snapshot.pools[model.pool_id].endpoints
    assert (first.api_key_env, first.max_in_flight, second.dialect) == ("FRA_KEY", 8, "nim")
    by_name = {key.name: key for key in snapshot.keys.values()}
    assert by_name["ci"].models == ("llama",)
    assert by_name["any"].models is None
    assert by_name["ci"].secrets[0].expires_s is not None
    assert by_name["any"].secrets[0].expires_s is None


async def test_increments_lead_to_the_same_snapshot_as_a_full_load(db: Database) -> None:
    chance = random.Random(3)
    loader, snapshot = Loader(db, lambda: 2**62), Snapshot()
    for _ in range(25):
        document: dict[str, Any] = copy.deepcopy(FULL)
        keys = document["tenants"][0]["projects"][0]["keys"]
        keys += [{"name": f"k{n}"} for n in range(chance.randrange(3))]
        keys[0]["limits"] = {"requests_per_minute": chance.randrange(1, 4)}
        document["models"][0]["max_output_tokens"] = chance.randrange(1, 3)
        if chance.random() < 0.2:
            document = {}
        await apply(db, document, prune=chance.random() < 0.6)
        if chance.random() < 0.7:
            found = await loader.since(snapshot.version)
            assert found is not None
            snapshot.apply(*found)
            assert contents(snapshot) == contents(await full(db))


async def test_a_log_that_does_not_reach_back_asks_for_a_full_load(
    db: Database, monkeypatch: Any
) -> None:
    monkeypatch.setattr(changes, "KEPT_VERSIONS", 2)
    document = copy.deepcopy(FULL)
    for limit in range(1, 6):
        document["tenants"][0]["limits"] = {"requests_per_minute": limit}
        await apply(db, document)
    assert await Loader(db, lambda: 2**62).since(1) is None
    assert await Loader(db, lambda: 2**62).since(4) is not None
    assert await Loader(db, lambda: 2**62).since(99) is None
    assert await Loader(db, lambda: 2**62).version() == 5


def crowded(keys: int) -> dict[str, Any]:
    """Projects of two tenants with so many keys each, all with limits, one of them by model."""
    limits = {"requests_per_minute": 60, "models": {"llama": {"tokens_per_minute": 9}}}
    many = [{"name": f"k{number}", "limits": limits} for number in range(keys)]
    return FULL | {
        "tenants": [
            {"name": tenant, "contract": {"kind": "payg"},
             "projects": [{"name": project, "keys": many} for project in ("p", "q")]}
            for tenant in ("acme", "other")
        ],
    }  # fmt: skip


async def test_a_load_asks_as_much_for_many_keys_as_for_few(db: Database) -> None:
    asked: list[int] = []
    for keys in (1, 30):
        await apply(db, crowded(keys))
        statements: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            statements.append(statement)  # noqa: B023 -- listened to within this turn alone

        event.listen(db.engine.sync_engine, "before_cursor_execute", note)
        snapshot = await full(db)
        event.remove(db.engine.sync_engine, "before_cursor_execute", note)
        asked.append(len(statements))
    assert len(snapshot.keys) == 4 * 30
    for key_id, key in snapshot.keys.items():
        principal = snapshot.principal(key_id)
        assert principal is not None
        assert len(key.secrets) == 1
        assert {each.scope_name for each in key.limits} == {f"key {key.path}"}
        assert [len(each) for each in key.model_limits.values()] == [1]
    assert asked[0] == asked[1]
