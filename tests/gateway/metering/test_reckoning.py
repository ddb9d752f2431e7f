"""A campaign of deaths with many requests open, reckoned up; and a checker that sees each fault."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gateway.metering.incarnation import Incarnation, all_folders
from gateway.metering.shipper import Shipper
from tests.support.ledgers import Ledger, Settles
from tests.support.lives import CONTEXT, STEPS, live
from tests.support.reckoning import discrepancies


def die_with_requests_open(
    data_dir: Path, chance: random.Random, requests: int, settled: list[str]
) -> dict[str, str]:
    """One incarnation, its lives interleaved by chance, cut off at some moment."""
    incarnation = Incarnation.create(data_dir / "alive", 0, 32, 16_384)
    waiting = [chance.randbytes(16) for _ in range(requests)]
    going = {}
    steps: dict[str, str] = {}
    try:
        for _ in range(chance.randrange(requests * len(STEPS))):
            if waiting and (not going or (len(going) < 24 and chance.random() < 0.3)):
                request_id = waiting.pop()
                going[request_id.hex()] = live(incarnation, request_id)
            if not going:
                break
            name = chance.choice(list(going))
            step = next(going[name], None)
            if step is None:
                del going[name]
                continue
            steps[name] = step
            if step == "marked":
                settled.append(name)
        shutil.copytree(incarnation.folder, data_dir / "run" / incarnation.name)
    finally:
        incarnation.close()
    return steps


async def campaign(data_dir: Path, seed: int) -> tuple[dict[str, str], Ledger, Settles, list[str]]:
    chance = random.Random(seed)
    settled: list[str] = []
    steps: dict[str, str] = {}
    for _ in range(6):
        steps |= die_with_requests_open(data_dir, chance, 40, settled)
    ledger, store = Ledger(), Settles()
    shipper = Shipper(data_dir, ledger.insert, store, CONTEXT, known=ledger.known)
    await shipper.ship_once()
    assert all_folders(data_dir) == []
    await shipper.close()
    settled += [each.reservation_id for each in store.settled]
    return steps, ledger, store, settled


@pytest.mark.parametrize("seed", range(4))
async def test_a_campaign_of_deaths_leaves_nothing_unexplained(seed: int, data_dir: Path) -> None:
    steps, ledger, store, settled = await campaign(data_dir, seed)
    assert len(set(steps.values())) > 8
    assert ledger.conflicts == []
    assert set(ledger.offered.values()) == {1}
    released = [name for _, name in store.released]
    assert discrepancies(steps, ledger.rows.values(), settled, released) == []


def dropped(items: list) -> list:
    return items[: len(items) // 2] + items[len(items) // 2 + 1 :]


def doubled(items: list) -> list:
    return [*items, items[len(items) // 2]]


def altered(rows: list) -> list:
    first = rows[0]
    usage = first.usage | {"completion_tokens": first.usage["completion_tokens"] + 1}
    return [msgspec.structs.replace(first, usage=usage), *rows[1:]]


def invented(rows: list) -> list:
    return [*rows, msgspec.structs.replace(rows[0], request_id="ff" * 16)]


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ("rows", dropped),
        ("rows", doubled),
        ("rows", altered),
        ("rows", invented),
        ("settled", dropped),
        ("settled", doubled),
        ("released", dropped),
        ("released", doubled),
    ],
)
async def test_the_checker_sees_a_single_fault(
    part: str, fault: Callable[[list], list], data_dir: Path
) -> None:
    steps, ledger, store, settled = await campaign(data_dir, seed=1)
    told = {
        "rows": list(ledger.rows.values()),
        "settled": settled,
        "released": [name for _, name in store.released],
    }
    assert discrepancies(steps, **told) == []
    told[part] = fault(told[part])
    assert len({line.split(":")[0] for line in discrepancies(steps, **told)}) == 1
