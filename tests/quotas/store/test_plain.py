"""Plain lists in one loop each: as the general way would, or nothing at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotas.buckets import UNTOUCHED_MS
from quotas.limits import Charge, Level
from quotas.store import cells
from quotas.store.cells import Rate
from quotas.store.plain import settle_plain, take_plain
from quotas.store.plans import Tag
from tests.support.limits import bucket, slots

FAST = bucket("t1", capacity=1000, per_minute=60_000)
STILL = bucket("k1", capacity=100, per_minute=0)
HOLDS = slots("k1", capacity=2)
LIMITS = (FAST, HOLDS, STILL)


def charges(*amounts, limits=LIMITS):
    return tuple(Charge(limit, n) for limit, n in zip(limits, amounts, strict=True))


@pytest.fixture
def tag():
    return Tag()


@pytest.fixture
def plan(tag):
    return tag.plan(charges(0, 0, 0))


def test_takes_every_row_and_shows_what_is_left(plan):
    assert take_plain(plan, charges(400, 1, 30), 5) == (Level(600, 400), Level(1, 0), Level(70, 0))
    assert take_plain(plan, charges(0, 0, 0), 105) == (Level(700, 300), Level(1, 0), Level(70, 0))


@pytest.mark.parametrize(
    "refused",
    [(1001, 1, 1), (1, 3, 1), (1, 1, 101), (-1, 1, 1), (1, -1, 1), (1, 1, -1)],
)
def test_what_refuses_leaves_every_row_as_it_was(plan, refused):
    before = take_plain(plan, charges(100, 1, 10), 5)

    assert take_plain(plan, charges(*refused), 5) is None

    assert take_plain(plan, charges(0, 0, 0), 5) == before


def test_untouched_bucket_stays_untouched_when_a_later_row_refuses(plan):
    assert take_plain(plan, charges(1, 1, 101), 5) is None

    assert [rate.at_ms for _, rate in plan.rates] == [UNTOUCHED_MS, UNTOUCHED_MS]


def test_limit_that_is_not_the_cells_own_is_left_to_the_general_way(plan):
    changed = (FAST, HOLDS, bucket("k1", capacity=200, per_minute=0))

    assert take_plain(plan, charges(1, 1, 1, limits=changed), 5) is None
    assert take_plain(plan, charges(0, 0, 0), 5)[0] == Level(1000, 0)


def test_settling_gives_back_what_was_not_used_and_every_hold(plan):
    reserved = charges(400, 2, 30)
    assert take_plain(plan, reserved, 5)

    settle_plain(plan, reserved, charges(150, 2, 40), 5)

    assert take_plain(plan, charges(0, 0, 0), 5) == (Level(850, 150), Level(2, 0), Level(60, 0))


def test_debt_is_shown_and_refuses(plan):
    reserved = charges(400, 0, 30)
    assert take_plain(plan, reserved, 5)
    settle_plain(plan, reserved, charges(1500, 0, 30), 5)

    assert take_plain(plan, charges(0, 0, 0), 5)[0] == Level(-500, 1500)
    assert take_plain(plan, charges(1, 0, 0), 5) is None


#: Which step, at which turn of the clock, of how much, and what it came to.
STEPS = st.lists(
    st.tuples(
        st.integers(-3, 900),
        st.tuples(st.integers(0, 300), st.integers(0, 2), st.integers(0, 40)),
        st.tuples(st.integers(0, 600), st.just(0), st.integers(0, 80)),
    ),
    max_size=12,
)


@given(STEPS)
def test_levels_are_those_of_the_cells_own_methods_cell_by_cell(steps):
    plan = Tag().plan(charges(0, 0, 0))
    others = Tag().plan(charges(0, 0, 0)).cells
    now_ms = 10
    for turn_ms, asked, came_to in steps:
        now_ms += turn_ms
        reserved, charged = charges(*asked), charges(*came_to)
        looks = [cells.look(*row, now_ms) for row in zip(others, reserved, strict=True)]
        levels = take_plain(plan, reserved, now_ms)

        assert (levels is not None) == all(wait == 0 for _, wait, _ in looks)
        if levels is None:
            continue
        for row in zip(others, reserved, strict=True):
            cells.take(*row, now_ms)
        shown = [cells.look(*row, now_ms)[0] for row in zip(others, reserved, strict=True)]
        assert list(levels) == shown
        now_ms += abs(turn_ms) // 2
        settle_plain(plan, reserved, charged, now_ms)
        for cell, was, used in zip(others, reserved, charged, strict=True):
            if not isinstance(cell, Rate):
                cell.held -= was.amount
            elif was.amount != used.amount:
                cell.add(was.amount - used.amount, now_ms)
        assert [_state(cell, now_ms) for cell in plan.cells] == [_state(c, now_ms) for c in others]


def _state(cell, now_ms):
    return cell.lacking(now_ms) if isinstance(cell, Rate) else cell.held
