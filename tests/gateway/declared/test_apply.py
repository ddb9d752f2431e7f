"""A file to the database: upsert by name, nothing removed unasked, one version a change."""

import copy
from typing import Any

import pytest

from gateway import identity
from gateway.declared.document import DeclaredError
from gateway.loader import Loader
from gateway.snapshot import Snapshot
from gateway.store import accounts, changes
from gateway.store.database import Database
from tests.support.applying import FULL, PEPPER, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres

__all__ = ["database_url", "db", "postgres"]


async def loaded(db: Database) -> Snapshot:
    snapshot = Snapshot()
    snapshot.apply(*await Loader(db, lambda: 2**62).full())
    return snapshot


async def version(db: Database) -> int:
    async with db.read() as connection:
        return await changes.peek(connection)


def full() -> dict[str, Any]:
    return copy.deepcopy(FULL)


async def test_a_new_file_creates_everything_and_shows_each_secret_once(db: Database) -> None:
    applied = await apply(db, full())
    assert applied.version == 1
    assert applied.created == {
        "pools": ["fra"],
        "endpoints": ["fra http://10.0.0.5:8000", "fra http://10.0.0.6:8000"],
        "models": ["llama"],
        "tenants": ["acme"],
        "projects": ["acme/bot"],
        "keys": ["acme/bot/ci", "acme/bot/any"],
    }
    assert [each["path"] for each in applied.keys] == ["acme/bot/ci", "acme/bot/any"]
    snapshot = await loaded(db)
    token = applied.keys[0]["secret"]
    kid = identity.parse(token)
    assert kid is not None
    found = snapshot.find_secret(kid)
    assert found is not None
    assert found[0].path == "acme/bot/ci"
    assert identity.matches(found[1].digest, identity.digest(PEPPER, token))


async def test_the_same_file_again_is_no_change_and_no_version(db: Database) -> None:
    await apply(db, full())
    again = await apply(db, full())
    assert (again.version, again.created, again.updated, again.removed, again.keys) == (
        1, {}, {}, {}, [],
    )  # fmt: skip
    assert (await apply(db, full(), prune=True)).version == 1


@pytest.mark.parametrize(
    ("edit", "updated"),
    [
        (lambda d: d["models"][0].update(max_output_tokens=5), {"models": ["llama"]}),
        (lambda d: d["models"][0]["price"].update(output="0.41"), {"models": ["llama"]}),
        (
            lambda d: d["pools"][0]["endpoints"][0].update(draining=True),
            {"endpoints": ["fra http://10.0.0.5:8000"]},
        ),
        (lambda d: d["tenants"][0]["limits"].update(requests_burst=51), {"tenants": ["acme"]}),
        (
            lambda d: d["tenants"][0]["projects"][0]["limits"].update(tokens_per_minute=7),
            {"projects": ["acme/bot"]},
        ),
        (
            lambda d: d["tenants"][0]["projects"][0]["keys"][0].update(expires="2098-01-01"),
            {"keys": ["acme/bot/ci"]},
        ),
    ],
)
async def test_an_edit_updates_that_object_alone_in_one_version(
    db: Database, edit: Any, updated: dict[str, list[str]]
) -> None:
    await apply(db, full())
    document = full()
    edit(document)
    applied = await apply(db, document)
    assert (applied.version, applied.updated, applied.created) == (2, updated, {})
    assert (await apply(db, document)).version == 2


async def test_a_renamed_key_is_another_and_the_old_one_stays_until_pruned(db: Database) -> None:
    before = await apply(db, full())
    document = full()
    document["tenants"][0]["projects"][0]["keys"][0]["name"] = "build"
    applied = await apply(db, document)
    assert applied.created == {"keys": ["acme/bot/build"]}
    kid = identity.parse(before.keys[0]["secret"])
    assert kid is not None
    assert (await loaded(db)).find_secret(kid) is not None
    pruned = await apply(db, document, prune=True)
    assert pruned.removed == {"keys": ["acme/bot/ci"]}
    assert (await loaded(db)).find_secret(kid) is None


async def test_pruning_to_an_empty_file_ends_everything_and_frees_every_name(db: Database) -> None:
    await apply(db, full())
    pruned = await apply(db, {}, prune=True)
    assert set(pruned.removed) == {
        "pools", "endpoints", "models", "tenants", "projects", "keys",
    }  # fmt: skip
    snapshot = await loaded(db)
    assert (snapshot.tenants, snapshot.keys, snapshot.models, snapshot.pools) == ({}, {}, {}, {})
    anew = await apply(db, full())
    assert len(anew.keys) == 2


async def test_a_dry_run_says_what_would_go_and_does_nothing(db: Database) -> None:
    await apply(db, full())
    plan = await apply(db, {}, prune=True, dry_run=True)
    assert sorted(plan.removed["keys"]) == ["acme/bot/any", "acme/bot/ci"]
    assert await version(db) == 1
    assert len((await loaded(db)).keys) == 2


async def test_a_dry_run_gives_no_secret_away(db: Database) -> None:
    plan = await apply(db, full(), dry_run=True)
    assert (len(plan.created["keys"]), plan.keys) == (2, [])
    assert await version(db) == 0


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda d: d["models"][0].update(pool="nowhere"), ["models[0].pool", "'nowhere'"]),
        (
            lambda d: d["tenants"][0]["projects"][0]["keys"][0].update(models=["gpt"]),
            ["acme/bot/ci", "'gpt'"],
        ),
    ],
)
async def test_a_name_nobody_has_refuses_the_whole_file(
    db: Database, edit: Any, named: list[str]
) -> None:
    document = full()
    edit(document)
    with pytest.raises(DeclaredError) as refused:
        await apply(db, document)
    assert [each for each in ["file.yaml", *named] if each not in str(refused.value)] == []
    assert await version(db) == 0


async def test_a_file_may_name_what_was_applied_before(db: Database) -> None:
    await apply(db, full())
    applied = await apply(db, {"models": [{"name": "second", "pool": "fra"}]})
    assert applied.created == {"models": ["second"]}


async def test_a_price_left_out_stays_and_a_change_is_a_new_version(db: Database) -> None:
    await apply(db, full())
    document = full()
    document["models"][0]["price"]["input"] = "0.20"
    await apply(db, document)
    del document["models"][0]["price"]
    await apply(db, document)
    (model,) = (await loaded(db)).models.values()
    assert model.price is not None
    assert (model.price.version, model.price.nano["input"]) == (2, 200_000_000)


async def test_a_revoked_key_in_the_file_stays_revoked(db: Database) -> None:
    applied = await apply(db, full())
    async with db.begin() as connection:
        key_id = await accounts.find_key(connection, "acme/bot/ci")
        await accounts.revoke(connection, key_id, 1)
        await changes.bump(connection, [("key", key_id)])
    again = await apply(db, full())
    assert again.keys == []
    kid = identity.parse(applied.keys[0]["secret"])
    assert kid is not None
    assert (await loaded(db)).find_secret(kid) is None


async def test_limits_that_all_tenants_share_are_what_the_file_says(db: Database) -> None:
    document = full()
    document["limits"] = {"requests_per_minute": 9_000}
    document["pools"][0]["limits"] = {"concurrent_requests": 64}
    document["models"][0]["limits"] = {
        "tokens_per_minute": {"limit": 10**6, "outage": "fail_closed"}
    }
    applied = await apply(db, document)
    assert applied.updated == {"platform": ["@platform"]}
    snapshot = await loaded(db)
    shared = snapshot.platform.limits_for(snapshot.model_by_name["llama"])
    assert [each.scope_name for each in shared] == ["platform", "pool fra", "model llama"]
    assert (await apply(db, document)).updated == {}
    document["models"][0]["limits"] = {"tokens_per_minute": 10**6}
    again = await apply(db, document)
    assert again.updated == {"models": ["llama"]}
    del document["limits"], document["pools"][0]["limits"]
    await apply(db, document)
    snapshot = await loaded(db)
    shared = snapshot.platform.limits_for(snapshot.model_by_name["llama"])
    assert [(each.scope_name, each.version) for each in shared] == [
        ("platform", 1),
        ("model llama", 2),
    ]


async def test_money_is_not_shared_by_all_tenants(db: Database) -> None:
    with pytest.raises(DeclaredError, match="budget_per_day: money is limited for tenants"):
        await apply(db, full() | {"limits": {"budget_per_day": "1.00"}})


async def test_a_credit_for_outages_is_of_a_tenant_or_project(db: Database) -> None:
    document = full()
    document["tenants"][0]["limits"]["offline_credit"] = "5.00"
    document["tenants"][0]["projects"][0]["limits"]["offline_credit"] = "0.50"
    await apply(db, document)
    snapshot = await loaded(db)
    principal = snapshot.principal(next(iter(snapshot.keys)))
    assert principal is not None
    assert [micro for _, micro in principal.credits] == [5_000_000, 500_000]
    assert not any(each.window == "offline" for each in principal.limits)
    document["tenants"][0]["projects"][0]["keys"][0]["limits"] = {"offline_credit": "1.00"}
    with pytest.raises(DeclaredError, match="offline_credit is of a tenant or a project"):
        await apply(db, document)
