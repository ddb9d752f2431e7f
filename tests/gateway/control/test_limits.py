"""Limits are listed and changed by path; a change is one version and touches nothing else."""

from typing import Any

import pytest

from gateway.control.limits import LimitsChange, LimitsDesk
from gateway.loader import Loader
from gateway.snapshot import Snapshot
from gateway.store.accounts import NotFound
from gateway.store.database import Database
from tests.support.applying import FULL, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres

__all__ = ["database_url", "db", "postgres"]


class Bench:
    def __init__(self, db: Database) -> None:
        self.db = db
        self.changes = 0
        self.desk = LimitsDesk(db, self._changed)

    async def _changed(self) -> None:
        self.changes += 1

    async def change(self, path: str, **fields: Any) -> dict[str, object]:
        return await self.desk.change(LimitsChange.model_validate({"path": path, **fields}))

    async def names(self, under: str = "") -> list[tuple[object, object, object]]:
        rows = await self.desk.list(under)
        return [(row["path"], row["name"], row["limit"]) for row in rows]

    async def snapshot(self) -> Snapshot:
        snapshot = Snapshot()
        snapshot.apply(*await Loader(self.db, lambda: 2**62).full())
        return snapshot


@pytest.fixture
async def bench(db: Database) -> Bench:
    await apply(db, FULL)
    return Bench(db)


async def test_every_limit_is_listed_by_path_and_those_below_one(bench: Bench) -> None:
    assert await bench.names() == [
        ("acme", "requests_per_minute", 600),
        ("acme", "concurrent_requests", 32),
        ("acme/bot", "tokens_per_minute", 100_000),
        ("acme/bot/any", "requests_per_minute", 60),
    ]
    assert await bench.names("acme/bot/any") == [("acme/bot/any", "requests_per_minute", 60)]
    with pytest.raises(NotFound):
        await bench.names("acme/gone")


async def test_a_change_is_a_version_and_the_others_stay(bench: Bench) -> None:
    done = await bench.change(
        "acme/bot/ci",
        limits={"tokens_per_day": 5_000, "tokens_per_minute": {"limit": 9, "shadow": True}},
    )
    assert done == {"path": "acme/bot/ci", "changed": True, "version": 2}
    assert bench.changes == 1
    again = await bench.change("acme/bot/ci", limits={"tokens_per_day": 5_000})
    assert again == {"path": "acme/bot/ci", "changed": False, "version": 2}
    key = next(k for k in (await bench.snapshot()).keys.values() if k.name == "ci")
    found = [(e.dimension, e.window, e.algorithm, e.capacity, e.shadow) for e in key.limits]
    assert sorted(found) == [
        ("tokens", "day", "quota", 5_000, False),
        ("tokens", "minute", "bucket", 9, True),
    ]


async def test_limits_of_a_model_and_of_end_users(bench: Bench) -> None:
    await bench.change("acme", model="llama", limits={"requests_per_minute": 7})
    await bench.change("acme/bot", end_user=True, limits={"budget_per_month": "1.50"})
    snapshot = await bench.snapshot()
    (tenant,) = snapshot.tenants.values()
    (project,) = snapshot.projects.values()
    (model_id,) = snapshot.models
    assert [each.scope for each in tenant.model_limits[model_id]] == [f"t{tenant.id}m{model_id}"]
    assert tenant.model_limits[model_id][0].scope_name == "tenant acme on model llama"
    (user,) = project.user_limits
    assert (user.scope, user.capacity, user.scope_name) == (
        f"p{project.id}u", 1_500_000, "end user of project acme/bot",
    )  # fmt: skip
    rows = await bench.desk.list("acme")
    assert [(row["name"], row["model"], row["end_user"]) for row in rows][2:4] == [
        ("requests_per_minute", "llama", False),
        ("tokens_per_minute", None, False),
    ]


async def test_a_removed_limit_is_gone(bench: Bench) -> None:
    await bench.change("acme", remove=["concurrent_requests"])
    assert ("acme", "concurrent_requests", 32) not in await bench.names()
    with pytest.raises(NotFound, match="no limit"):
        await bench.change("acme", remove=["concurrent_requests"])
    with pytest.raises(ValueError, match="expected one of"):
        await bench.change("acme", remove=["tokens"])


async def test_unknown_paths_and_models_are_told_and_nothing_changes(bench: Bench) -> None:
    for path in ("gone", "acme/gone", "acme/bot/gone"):
        with pytest.raises(NotFound):
            await bench.change(path, limits={"requests_per_minute": 1})
    with pytest.raises(NotFound, match="no model x"):
        await bench.change("acme", model="x", limits={"requests_per_minute": 1})
    with pytest.raises(ValueError, match="not of both"):
        await bench.change("acme", model="llama", end_user=True)
    assert bench.changes == 0


async def test_what_all_tenants_share_is_changed_by_paths_of_its_own(bench: Bench) -> None:
    before = await bench.snapshot()
    await bench.change("@platform", limits={"requests_per_minute": 9_000})
    await bench.change("@pool/fra", limits={"concurrent_requests": 64})
    done = await bench.change("@model/llama", limits={"tokens_per_minute": {"limit": 1_000_000}})
    assert done["changed"]
    assert (await bench.names("@model/llama")) == [("@model/llama", "tokens_per_minute", 1_000_000)]
    assert [path for path, _, _ in (await bench.names())[:3]] == [
        "@model/llama",
        "@platform",
        "@pool/fra",
    ]
    after = await bench.snapshot()
    assert before.platform.limits_for(after.model_by_name["llama"]) == ()
    shared = after.platform.limits_for(after.model_by_name["llama"])
    assert [(each.scope_name, each.dimension, each.version) for each in shared] == [
        ("platform", "requests", 1),
        ("pool fra", "concurrency", 1),
        ("model llama", "tokens", 1),
    ]
    await bench.change("@pool/fra", remove=["concurrent_requests"])
    assert len((await bench.snapshot()).platform.limits_for(after.model_by_name["llama"])) == 2


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("@pool/gone", {"limits": {"requests_per_minute": 1}}, "no pool gone"),
        ("@what", {}, "expected @platform"),
        ("@platform", {"limits": {"budget_per_day": "1.00"}}, "money is limited for"),
        ("@platform", {"model": "llama"}, "as a whole"),
        ("@model/llama", {"end_user": True}, "as a whole"),
    ],
)
async def test_a_share_of_nothing_is_refused(
    bench: Bench, path: str, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises((NotFound, ValueError), match=said):
        await bench.change(path, **fields)


async def test_a_credit_for_outages_is_set_like_a_limit(bench: Bench) -> None:
    await bench.change("acme", limits={"offline_credit": "2.50"})
    assert ("acme", "offline_credit", "2.50") in await bench.names("acme")
    snapshot = await bench.snapshot()
    assert [each.offline_credit_micro for each in snapshot.tenants.values()] == [2_500_000]
    with pytest.raises(ValueError, match="of a tenant or a project"):
        await bench.change("acme/bot/any", limits={"offline_credit": "2.50"})
    await bench.change("acme", remove=["offline_credit"])
    snapshot = await bench.snapshot()
    assert [each.offline_credit_micro for each in snapshot.tenants.values()] == [None]
