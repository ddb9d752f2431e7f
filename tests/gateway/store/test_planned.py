"""Which documents are others after a moment: of models, and of tenants with prices of their own."""

from gateway.store.database import Database
from gateway.store.planned import due
from tests.gateway.store.test_books import document
from tests.support.applying import NOW_MS, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres

__all__ = ["database_url", "db", "postgres"]
NINE_MS = NOW_MS + 3_600_000


async def test_what_begins_or_ends_in_between_is_due_once(db: Database) -> None:
    nine = "2027-01-15T09:00"
    planned = document({"kind": "payg", "from": "2027-01-15T10:00"})
    planned["models"][0]["price"] = {"input": "3", "from": nine}
    planned["tenants"][0]["prices"] = [{"model": "llama", "input": "2", "from": nine}]
    await apply(db, document(), NOW_MS)
    await apply(db, planned, NOW_MS + 1)

    async with db.read() as connection:
        assert await due(connection, NOW_MS + 9, NINE_MS - 1) == []
        assert await due(connection, NINE_MS - 1, NINE_MS) == [("model", 1), ("tenant", 1)]
        assert await due(connection, NINE_MS, NINE_MS + 3_599_999) == []
        assert await due(connection, NINE_MS, 2**62) == [("tenant", 1)]
