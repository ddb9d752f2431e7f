"""The whole way with the real ends: a process killed, SQLite as the ledger, a store that settles."""

import asyncio
import contextlib
import signal
import sys
from functools import partial
from pathlib import Path

from gateway.metering.incarnation import all_folders
from gateway.metering.shipper import Shipper
from gateway.store.database import Database, open_database
from gateway.store.ledger import insert_records, known_ids
from gateway.store.usage import read_records
from quotas.limits import Charge
from quotas.store.memory import MemoryStore
from tests.support.lives import CONTEXT, EPOCH, LIMITS, REQUEST_ID, RESERVED_TOKENS
from tests.support.processes import ROOT


async def test_a_killed_request_is_billed_once_and_its_reservation_settled(data_dir: Path) -> None:
    store = MemoryStore(now_ms=lambda: 1_000)  # nothing refills
    store.epoch = EPOCH
    held = tuple(
        Charge(limit, amount) for limit, amount in zip(LIMITS, (1, RESERVED_TOKENS, 1), strict=True)
    )
    await store.reserve("t11", REQUEST_ID.hex(), held, 3_600)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.lives", str(data_dir), "counted_more", cwd=ROOT
    )
    assert await child.wait() == -signal.SIGKILL

    async with contextlib.AsyncExitStack() as ends:
        ends.push_async_callback(store.close)
        db = open_database(None, data_dir)
        ends.push_async_callback(db.close)
        await db.migrate()
        await ship_and_look(db, store, data_dir)


async def ship_and_look(db: Database, store: MemoryStore, data_dir: Path) -> None:
    for _ in range(2):  # the second is a control process started later
        shipper = Shipper(
            data_dir,
            partial(insert_records, db),
            store,
            CONTEXT,
            known=partial(known_ids, db),
        )
        await shipper.ship_once()
        await store.flush(1.0)
        await shipper.ship_once()
        await shipper.close()
    assert all_folders(data_dir) == []
    (row,), _ = await read_records(db)
    assert (row["outcome"], row["source"]) == ("gateway_crash", "engine_partial")
    assert (row["prompt_tokens"], row["completion_tokens"], row["attempts"]) == (10, 5, 2)
    after = await store.reserve("t11", "00" * 16, tuple(Charge(limit, 0) for limit in LIMITS), 60)
    assert after.levels[0].remaining == 99
    assert after.levels[1].remaining == 10_000 - 15
    assert after.levels[2].remaining == 10
