"""Hosts with journals of their own and one PostgreSQL: each ships what is its own, late too, once."""

import asyncio
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import func, select

from gateway.metering import shipper as shipper_module
from gateway.metering.incarnation import Incarnation, all_folders
from gateway.metering.shipper import Shipper
from gateway.store.database import Database, open_database
from gateway.store.ledger import count_quarantined, insert_records, known_ids
from gateway.store.schema import usage_records
from quotas.record import encode
from tests.support.lives import CONTEXT, final_record, live
from tests.support.postgres import postgres

__all__ = ["postgres"]


#: Made once: both hosts have the same bytes.
PAYLOADS = [encode(final_record(number.to_bytes(16), 10, 6)) for number in range(20)]


class Host:
    """A data folder, its own connection to the one database, its shipper."""

    def __init__(self, data_dir: Path, url: str) -> None:
        self.data_dir = data_dir
        self.db = open_database(url, data_dir)
        self.shipper = Shipper(
            data_dir,
            partial(insert_records, self.db),
            None,
            CONTEXT,
            known=partial(known_ids, self.db),
            lanes=2,
        )

    def serve(self, first: int, count: int) -> None:
        """Requests that ended, and one that was open when the process died."""
        life = Incarnation.create(self.data_dir, 0, 16, 65_536)
        for number in range(first, first + count):
            for _ in live(life, number.to_bytes(16)):
                pass
        for step in live(life, (first + count).to_bytes(16)):
            if step == "counted":
                break
        life.close()

    async def ship(self) -> None:
        await self.shipper.ship_once()

    async def close(self) -> None:
        await self.shipper.close()
        await self.db.close()


async def ids(db: Database) -> list[str]:
    async with db.read() as connection:
        query = select(usage_records.c.request_id).order_by(usage_records.c.request_id)
        return list(await connection.scalars(query))


def named(*numbers: int) -> list[str]:
    return [number.to_bytes(16).hex() for number in numbers]


async def test_hosts_ship_side_by_side_and_one_that_returns_late_ships_late_once(
    postgres, tmp_path: Path
) -> None:
    url = postgres.new_url()
    hosts = [Host(tmp_path / name, url) for name in ("a", "b", "late")]
    await hosts[0].db.migrate()
    for number, host in enumerate(hosts):
        host.data_dir.mkdir(exist_ok=True)
        host.serve(10 * number, 4)
    await asyncio.gather(hosts[0].ship(), hosts[1].ship())
    assert await ids(hosts[0].db) == named(0, 1, 2, 3, 4, 10, 11, 12, 13, 14)

    await hosts[2].ship()  # a day later
    await asyncio.gather(*(host.ship() for host in hosts))
    wanted = named(0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24)
    assert await ids(hosts[0].db) == wanted
    assert await count_quarantined(hosts[0].db) == 0
    assert [all_folders(host.data_dir) for host in hosts] == [[], [], []]
    async with hosts[0].db.read() as connection:
        total = await connection.scalar(select(func.sum(usage_records.c.completion_tokens)))
    assert total == 3 * (4 * 6 + 3)
    for host in hosts:
        await host.close()


async def test_a_folder_that_came_twice_by_a_copy_is_shipped_once(
    postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data folder restored elsewhere: the same records, offered by two hosts at once, each with
    two batches under way.
    """
    monkeypatch.setattr(shipper_module, "BATCH", 4)
    url = postgres.new_url()
    hosts = [Host(tmp_path / name, url) for name in ("a", "b")]
    await hosts[0].db.migrate()
    for host in hosts:
        host.data_dir.mkdir()
        life = Incarnation.create(host.data_dir, 0, 16, 65_536)
        for number in range(20):
            life.journal.append(PAYLOADS[number])
        life.close()
    await asyncio.gather(*(host.ship() for host in hosts))
    assert await ids(hosts[0].db) == named(*range(20))
    assert await count_quarantined(hosts[0].db) == 0
    for host in hosts:
        await host.close()
