"""What scopes have spent, from the ledger."""

import pytest

from gateway.store.database import Database
from gateway.store.ledger import insert_records
from gateway.store.spending import Scope, parse_scope, spent_micro
from tests.support.applying import FULL, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import record

__all__ = ["database_url", "db", "postgres"]
MILLIONS = {"input": 1_000_000, "cached_input": 0, "output": 1_000_000}


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("t3", Scope("tenant_id", 3)),
        ("p4", Scope("project_id", 4)),
        ("k5m6", Scope("key_id", 5, 6)),
        ("k5uabc", None),
        ("x1", None),
        ("t", None),
    ],
)
def test_a_limits_scope_is_a_column_of_the_ledger(text: str, scope: Scope | None) -> None:
    assert parse_scope(text) == scope


async def test_what_was_billed_is_summed_by_scope_model_and_time(db: Database) -> None:
    await apply(db, FULL)
    pairs = [record(number, started_ms=1_000 + number, billed=MILLIONS) for number in range(4)]
    await insert_records(db, pairs)
    first = pairs[0][1]

    async def spent(scope: Scope, from_ms: int, to_ms: int, currency: str = "USD") -> int:
        async with db.read() as connection:
            return await spent_micro(connection, scope, currency, from_ms, to_ms)

    key = Scope("key_id", first.key_id)
    whole = await spent(key, 0, 10_000)
    assert whole > 0
    assert await spent(key, 0, 1_002) < whole
    assert await spent(key, 0, 1_000) == 0
    assert await spent(Scope("key_id", first.key_id, first.model_id), 0, 10_000) == whole
    assert await spent(Scope("key_id", first.key_id, first.model_id + 1), 0, 10_000) == 0
    assert await spent(Scope("tenant_id", first.tenant_id + 1), 0, 10_000) == 0
    assert await spent(key, 0, 10_000, "EUR") == 0
