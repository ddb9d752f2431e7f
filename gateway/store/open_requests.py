"""What each host that shares the database has open at engines, told when another one asks.

A row a host: when it was last seen, how often it was asked, and what it told the last time. Who asks
waits for those that live; who answers has shipped before. Times are the database's, as in ``duties``.
Not here: what is open (JSON of ``gateway.metering.reconcile.Claim``, kept and given back as it is).
"""

from collections.abc import Mapping

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from gateway.store.database import Database
from gateway.store.duties import now_ms
from gateway.store.schema import open_requests

#: A host that was not seen for this long is not asked.
ALIVE_MS = 15_000
FORGOTTEN_MS = 86_400_000


async def note(db: Database, host: str) -> int:
    """Say that a host lives. The question that it has not answered yet, 0 = none."""
    dialect = sqlite if db.is_sqlite else postgresql
    async with db.begin() as connection:
        statement = dialect.insert(open_requests).values(host=host, seen_ms=now_ms(connection))
        row = (
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["host"], set_={"seen_ms": statement.excluded.seen_ms}
                ).returning(open_requests.c.asked, open_requests.c.told)
            )
        ).one()
    return int(row.asked) if row.asked > row.told else 0


async def tell(db: Database, host: str, question: int, claims: str) -> None:
    """Answer it: what was open before what had ended was shipped."""
    async with db.begin() as connection:
        await connection.execute(
            update(open_requests)
            .where(open_requests.c.host == host)
            .values(told=question, claims=claims)
        )


async def is_alone(db: Database, host: str) -> bool:
    """Whether no other host was seen for a day: one that is gone may have left records to ship."""
    async with db.read() as connection:
        seen = select(open_requests.c.host).where(
            open_requests.c.host != host,
            open_requests.c.seen_ms > now_ms(connection) - FORGOTTEN_MS,
        )
        return (await connection.execute(seen.limit(1))).first() is None


async def ask(db: Database, host: str) -> dict[str, int]:
    """Ask all other hosts that live; the number of each one's question."""
    async with db.begin() as connection:
        at_ms = now_ms(connection)
        await connection.execute(
            delete(open_requests).where(open_requests.c.seen_ms < at_ms - FORGOTTEN_MS)
        )
        rows = await connection.execute(
            update(open_requests)
            .where(open_requests.c.host != host, open_requests.c.seen_ms > at_ms - ALIVE_MS)
            .values(asked=open_requests.c.asked + 1)
            .returning(open_requests.c.host, open_requests.c.asked)
        )
        return {row.host: row.asked for row in rows}


async def told(db: Database, asked: Mapping[str, int]) -> dict[str, str]:
    """The answers that have come by now, by host."""
    async with db.read() as connection:
        rows = await connection.execute(
            select(open_requests).where(open_requests.c.host.in_(list(asked)))
        )
        return {row.host: row.claims for row in rows if row.told >= asked[row.host]}
