"""Counters are explained exactly where everything was seen, by a range where not, and never else."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.metering.reconcile import (
    LAG_MS,
    RESIDUE_TOKENS,
    Claim,
    Point,
    Range,
    Reckoning,
    claim_of_probe,
    claim_of_slot,
    claims_of,
    total,
)
from gateway.metering.slots import SlotState
from quotas.record import AttemptEntry
from tests.gateway.metering.test_inquest import image
from tests.support.records import record

URL = "http://10.0.0.5:8000"


def point(at_ms, prompt=0, generation=0, *, quiet_ms=1_000):
    return Point(
        endpoint=URL, at_ms=at_ms, quiet_since_ms=at_ms - quiet_ms, started_ms=1,
        prompt=prompt, generation=generation,
    )  # fmt: skip


def claim(started_ms, ended_ms, prompt=(0, 0), generation=(0, 0), **fields):
    made = Claim(
        request_id="r", endpoint=URL, started_ms=started_ms, ended_ms=ended_ms,
        prompt=Range(*prompt), generation=Range(*generation),
    )  # fmt: skip
    return msgspec.structs.replace(made, **fields)


def attempt(prompt, completion, status=200, choices=1):
    return AttemptEntry(1, URL, 100, 200, status, prompt, completion, choices)


def only(**fields):
    """Prompt and generation of a record's single claim."""
    [made] = claims_of(record(1, **fields)[1])
    return (made.prompt.low, made.prompt.high), (made.generation.low, made.generation.high)


def test_an_answer_that_ended_well_counts_its_prompt_once_a_choice():
    assert only(attempts=(attempt(10, 6, choices=2),), choices=2) == ((20, 20), (6, 6))


def test_a_refusal_costs_nothing():
    refused = {"outcome": "refused_by_engine", "source": "none"}
    assert only(attempts=(attempt(0, 0, status=400),), **refused) == ((0, 0), (0, 0))
    assert only(attempts=(attempt(0, 0, status=503),), **refused) == ((0, 0), (0, 0))


def test_a_cut_stream_costs_what_was_seen_and_a_residue_within_its_cap():
    cut = {"outcome": "client_abort", "source": "engine_partial"}
    assert only(attempts=(attempt(10, 6),), cap=500, **cut) == ((10, 10), (6, 6 + RESIDUE_TOKENS))
    assert only(attempts=(attempt(10, 6),), cap=7, **cut) == ((10, 10), (6, 7))
    # Of two choices one may not have begun.
    two = attempt(10, 6, choices=2)
    assert only(attempts=(two,), choices=2, cap=4, **cut) == ((10, 20), (6, 8))
    # Of two prompts one may not have spoken.
    assert only(attempts=(attempt(10, 6),), prompts=2, prompt_estimate=20, cap=4, **cut) == (
        (10, 168), (6, 8),
    )  # fmt: skip


def test_an_answer_nobody_saw_costs_at_most_prompt_and_cap():
    left = {"outcome": "client_abort", "attempts": (attempt(0, 0),), "cap": 30}
    tokenized = {"usage": {"prompt_tokens": 17}, "source": "tokenized"}
    assert only(**left, **tokenized) == ((0, 17), (0, 30))
    assert only(**left, prompt_estimate=20, source="estimated") == ((0, 104), (0, 30))


def test_attempts_before_the_last_are_claimed_as_well():
    made = record(1, attempts=(attempt(0, 0, 500), attempt(10, 3)), cap=9, prompt_estimate=1)[1]
    first, last = claims_of(made)
    assert (first.prompt, first.generation) == (Range(0, 66), Range(0, 9))
    assert first.reason == "an attempt before the last, status 500"
    assert (last.prompt, last.generation, last.reason) == (Range(10, 10), Range(3, 3), "")


def test_nobody_saw_the_end_of_a_crash():
    made = record(1, outcome="gateway_crash", source="engine_partial")[1]
    assert claims_of(made)[0].ended_ms is None


def test_an_open_request_may_cost_all_it_reserved_and_one_not_sent_nothing():
    found = claim_of_slot(image(prompts=3), URL)
    assert (found.prompt.high, found.generation.high) == ((2 * 40 + 3 * 64) * 2, 100 * 3 * 2)
    reserved = msgspec.structs.replace(image(), state=SlotState.RESERVED)
    assert claim_of_slot(reserved, URL) is None


def test_a_probe_is_exact_when_its_answer_said_so():
    assert claim_of_probe(URL, 1, 2, (9, 1)).prompt == Range(9, 9)
    assert claim_of_probe(URL, 1, 2, None).prompt == Range(0, 64)


def test_a_counter_that_lies_by_one_token_is_caught_between_idle_points():
    for lie in (-1, 0, 1):
        reckoning = Reckoning(point(0), point(9_000, 20 + lie, 5))
        reckoning.add(claim(100, 500, (20, 20), (5, 5)))
        report = reckoning.report()
        assert report.exact
        assert (report.difference_prompt, report.difference_generation) == (lie, 0)
        assert total([report]) == (abs(lie), 0)


def test_what_lies_outside_is_left_out():
    reckoning = Reckoning(point(10_000), point(20_000))
    reckoning.add(claim(8_000, 8_900, (9, 9)))
    reckoning.add(claim(20_000, 21_000, (9, 9)))
    reckoning.add(claim(12_000, 13_000, (9, 9), endpoint="http://other"))
    assert reckoning.report().attempts == 0


@pytest.mark.parametrize(
    ("started_ms", "ended_ms", "quiet_ms", "room"),
    [
        (8_000, 8_500, 1_000, None),  # before the engine stood still
        (8_000, 9_500, 1_000, None),  # it was done with it before
        (9_200, 9_800, 1_000, True),  # while it stood still: not counted yet, or never
        (9_200, 10_100, 1_000, False),  # after
        (8_000, 10_100, 1_000, True),  # on either side
        (8_000, None, 1_000, None),  # a crash: nothing ran any more
        (7_000, 10_000 - LAG_MS, 0, None),
        (7_000, 9_900, 0, True),
        (7_000, None, 0, True),
        (10_000, 10_500, 0, False),
    ],
)
def test_a_request_at_a_scrape_is_before_it_after_it_or_both(started_ms, ended_ms, quiet_ms, room):
    reckoning = Reckoning(point(10_000, quiet_ms=quiet_ms), point(20_000))
    reckoning.add(claim(started_ms, ended_ms, (5, 5), (7, 7)))
    report = reckoning.report()

    expected = None if not report.attempts else bool(report.prompt.room)
    assert expected is room


def test_the_largest_rooms_are_named_and_the_rest_counted():
    reckoning = Reckoning(point(0), point(90_000))
    for size in range(2_000):
        reckoning.add(claim(10, 20, (0, size), request_id=f"r{size}", reason="client_abort"))
    report = reckoning.report()

    assert report.with_room == 1_999
    assert [each.request_id for each in report.explained_by[:2]] == ["r1999", "r1998"]
    assert len(report.explained_by) == 200


JOBS = st.lists(
    st.tuples(
        st.integers(0, 60_000),  # start
        st.integers(1, 5_000),  # duration
        st.integers(1, 50),  # prompt
        st.integers(0, 50),  # made
        st.integers(0, 50),  # of them not seen
    ),
    max_size=30,
)


@given(JOBS, st.integers(0, 70_000), st.integers(0, 70_000))
def test_a_true_engine_is_always_explained(jobs, one_ms, other_ms):
    """Whenever it is looked at, running or not: prompt at the start, tokens evenly until the end."""

    def made(at_ms, start, duration, prompt, count):
        if at_ms <= start:
            return 0, 0
        return prompt, count * min(at_ms - start, duration) // duration

    def counters(at_ms):
        sums = [made(at_ms, *job[:4]) for job in jobs]
        return sum(prompt for prompt, _ in sums), sum(count for _, count in sums)

    def look(at_ms):
        busy = any(start < at_ms and at_ms - 800 < start + job for start, job, *_ in jobs)
        return point(at_ms, *counters(at_ms), quiet_ms=0 if busy else 800)

    first, last = look(min(one_ms, other_ms)), look(max(one_ms, other_ms))
    reckoning = Reckoning(first, last)
    for start, duration, prompt, count, unseen in jobs:
        seen = max(0, count - unseen)
        reckoning.add(claim(start, start + duration, (prompt, prompt), (seen, count)))
    assert total([reckoning.report()]) == (0, 0)
