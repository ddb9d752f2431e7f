"""Every point between claim and free at which a process may be killed."""

import asyncio
import shutil
import signal
import sys
from pathlib import Path

import pytest

from gateway.metering.board import read_board
from gateway.metering.incarnation import Incarnation, all_folders, dead_folders
from gateway.metering.recovery import recover
from gateway.metering.shipper import Shipper
from tests.support.first_release import age
from tests.support.ledgers import Ledger, Settles
from tests.support.lives import (
    CONTEXT,
    REQUEST_ID,
    RESERVED_TOKENS,
    STEPS,
    TENANT,
    Left,
    live,
)
from tests.support.processes import ROOT

NAME = REQUEST_ID.hex()
#: A row of docs/metering.md ("dead right after") -> the steps that it speaks of.
ROWS = {
    "slot claimed": ["claimed"],
    "`reserving`": ["reserving"],
    "`reserved`": ["reserved"],
    "`dispatched`": ["dispatched"],
    "attempt failed, none after it yet": ["attempt_failed"],
    "dispatched again": ["dispatched_again"],
    "prompt seen, no token delivered": ["prompt_seen"],
    "a progress half half written": ["half_torn_early", "half_torn"],
    "tokens counted": ["counted", "counted_more"],
    "ending half written": ["ending_torn"],
    "ended": ["ended"],
    "ended, and the engine's tokenizer is being asked": [],  # tests/flows/test_uncounted.py
    "record half written": ["record_torn"],
    "record written": ["record_written"],
    "settle queued or mark half written": ["mark_torn"],
    "marked": ["marked"],
    "slot freed": ["freed"],
}
#: What the page's words about the record mean: outcome, and whether recovery writes it.
RECORD_SAID = {
    "none": (None, False),
    "gateway_crash": ("gateway_crash", True),
    "its own outcome": ("ok", True),
    "its own outcome, written again": ("ok", True),
    "the one in the journal": ("ok", False),
}


def stopped_after(step: str, data_dir: Path) -> Path:
    """A folder as the disk shows it right after the step: a copy taken while the owner lives."""
    incarnation = Incarnation.create(data_dir / "alive", 0, 16, 65_536)
    try:
        for done in live(incarnation):
            if done == step:
                break
        dead = data_dir / "run" / incarnation.name
        shutil.copytree(incarnation.folder, dead)
    finally:
        incarnation.close()
    return dead


async def check(data_dir: Path, left: Left) -> None:
    """Recover twice, ship, and compare with the table."""
    (folder,) = dead_folders(data_dir)
    ledger, store = Ledger(), Settles()
    found = await recover(folder, known=ledger.known, context=CONTEXT)
    assert found is not None
    assert found.records == left.written
    assert [release.reservation_id for _, release in found.released] == [NAME] * left.released
    tokens = [settlement.charged[1].amount for _, settlement in found.settles if settlement]
    assert tokens == ([] if left.settles is None else [left.settles])
    assert read_board(folder / "board") == []
    found.close()  # as if killed here: nothing was acknowledged, nothing shipped

    shipper = Shipper(data_dir, ledger.insert, store, CONTEXT, known=ledger.known)
    await shipper.ship_once()
    assert all_folders(data_dir) == []
    await shipper.close()
    assert shipper.recovered == 0  # the second recovery found everything written
    assert store.released == [(f"t{TENANT}", NAME)] * left.released
    assert [each.charged[1].amount for each in store.settled] == tokens
    if left.outcome is None:
        assert ledger.rows == {}
        return
    (row,) = ledger.rows.values()
    assert ledger.offered == {NAME: 1}
    assert (row.outcome, row.source) == (left.outcome, left.source)
    counts = (row.usage["prompt_tokens"], row.usage["completion_tokens"])
    assert counts == (left.prompt, left.completion)
    assert row.billed == {"input": left.prompt, "output": left.completion}
    assert len(row.attempts) == left.attempts
    assert row.attempts[-1].endpoint == (
        "http://two" if left.attempts > 1 else row.attempts[-1].endpoint
    )


@pytest.mark.parametrize("step", STEPS)
async def test_a_copy_of_the_files_at_each_step_is_settled_as_the_table_says(
    step: str, data_dir: Path
) -> None:
    stopped_after(step, data_dir)
    await check(data_dir, STEPS[step])


@pytest.mark.parametrize("step", STEPS)
async def test_what_the_first_release_left_at_each_step_is_settled_by_this_one(
    step: str, data_dir: Path
) -> None:
    age(stopped_after(step, data_dir))
    await check(data_dir, STEPS[step])


@pytest.mark.parametrize("step", STEPS)
async def test_a_process_killed_at_each_step_is_settled_as_the_table_says(
    step: str, data_dir: Path
) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.lives", str(data_dir), step, cwd=ROOT
    )
    await child.wait()
    assert child.returncode == -signal.SIGKILL
    await check(data_dir, STEPS[step])


async def test_a_record_that_only_the_ledger_has_is_settled_and_not_written_again(
    data_dir: Path,
) -> None:
    folder = stopped_after("ended", data_dir)
    ledger = Ledger()
    ledger.rows[NAME] = None  # type: ignore[assignment]
    found = await recover(folder, known=ledger.known, context=CONTEXT)
    assert found is not None
    assert found.records == 0
    ((_, settlement),) = found.settles
    assert settlement is not None
    assert (settlement.reservation_id, settlement.charged[1].amount) == (NAME, 16)
    found.close()


async def test_a_folder_whose_owner_lives_is_left_alone(data_dir: Path) -> None:
    incarnation = Incarnation.create(data_dir, 0, 16, 65_536)
    next(live(incarnation))
    assert dead_folders(data_dir) == []
    assert await recover(incarnation.folder, known=Ledger().known, context=CONTEXT) is None
    incarnation.close()
    assert dead_folders(data_dir) == [incarnation.folder]


def page_rows() -> dict[str, list[str]]:
    """The page's table of kill points: its first cell -> the others."""
    text = (ROOT / "docs" / "metering.md").read_text()
    table = text.partition("| dead right after |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {first: rest for first, *rest in cells}


def test_the_page_has_every_kill_point_and_no_other() -> None:
    assert list(page_rows()) == list(ROWS)
    assert sorted(step for steps in ROWS.values() for step in steps) == sorted(STEPS)


@pytest.mark.parametrize("row", ROWS)
def test_the_page_says_of_a_kill_point_what_recovery_does(row: str) -> None:
    _, record, billed, limits = page_rows()[row]
    for step in ROWS[row]:
        left = STEPS[step]
        if not record.startswith("as the"):  # as before that step, which has a row of its own
            assert (left.outcome, left.written) == RECORD_SAID[record]
        assert ("released in full" in limits) == left.released
        if "charged as reserved" in limits:
            assert left.settles == RESERVED_TOKENS
        if "0 / 0" in billed:
            assert (left.prompt, left.completion, left.source) == (0, 0, "none")
        if "settled again" in limits:
            assert left.settles is not None
        if limits in ("settled already", "as its mark says"):
            assert left.settles is None
