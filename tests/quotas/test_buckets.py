"""The reference arithmetic: exact, bounded, and honest about waiting."""

from hypothesis import example, given
from hypothesis import strategies as st

from quotas.buckets import MAX_UNITS, NEVER, TICKS, Bucket, fits, shown, wait_ms

units = st.integers(0, 10**6) | st.integers(0, MAX_UNITS)
rates = st.integers(1, 10**6) | st.integers(1, MAX_UNITS)


def test_refill_is_exact_to_the_millisecond():
    bucket = Bucket(capacity=100, per_minute=7, now_ms=0)
    bucket.add(-100, 0)

    for now_ms in range(1, 60_001):
        bucket.advance(now_ms)

    assert bucket.level == 7 * TICKS


@given(st.integers(1, MAX_UNITS), rates, units, units)
def test_waiting_exactly_retry_after_admits_and_a_millisecond_less_does_not(
    capacity, per_minute, taken, amount
):
    bucket = Bucket(capacity, per_minute, 0)
    bucket.add(-taken, 0)
    wait = wait_ms(bucket.level, amount, capacity, per_minute)

    if wait == NEVER:
        assert amount > capacity
    elif wait == 0:
        assert fits(bucket.level, amount)
    else:
        assert not fits(bucket.advance(wait - 1), amount)
        assert fits(bucket.advance(wait), amount)


@given(st.integers(1, MAX_UNITS), rates, st.integers(-MAX_UNITS, MAX_UNITS))
def test_reset_is_the_first_moment_the_bucket_is_full(capacity, per_minute, change):
    bucket = Bucket(capacity, per_minute, 0)
    bucket.add(change, 0)
    reset_ms = shown(bucket.level, capacity, per_minute).reset_ms

    if reset_ms:
        assert bucket.advance(reset_ms - 1) < capacity * TICKS
    assert bucket.advance(reset_ms) == capacity * TICKS


@given(st.lists(st.tuples(st.integers(-60_000, 60_000), st.integers(-500, 500)), max_size=60))
def test_level_never_passes_capacity_and_time_backwards_grants_nothing(steps):
    bucket = Bucket(capacity=300, per_minute=90, now_ms=0)
    now_ms = granted = 0
    for step_ms, change in steps:
        now_ms += step_ms
        before = bucket.level
        after = bucket.advance(now_ms)
        assert before <= after <= max(before, before + max(0, step_ms) * 90)
        granted += after - before
        bucket.add(change, now_ms)
        assert bucket.level <= 300 * TICKS
    forward_ms = sum(max(0, step_ms) for step_ms, _ in steps)
    assert granted <= forward_ms * 90


@given(units, st.integers(0, 10**9), st.lists(st.integers(0, 10**6), max_size=10))
@example(10, 5, [])
def test_looking_in_between_changes_nothing(taken, per_minute, looks):
    watched, alone = Bucket(10**6, per_minute, 0), Bucket(10**6, per_minute, 0)
    for bucket in (watched, alone):
        bucket.add(-taken, 0)
    for now_ms in sorted(looks):
        watched.advance(now_ms)

    assert watched.advance(2 * 10**6) == alone.advance(2 * 10**6)


def test_debt_is_kept_and_repaid_before_anything_fits():
    bucket = Bucket(capacity=10, per_minute=60, now_ms=0)
    bucket.add(-25, 0)

    assert shown(bucket.level, 10, 60).remaining == -15
    assert wait_ms(bucket.level, 1, 10, 60) == 16_000


def test_smaller_limit_cuts_a_surplus_and_a_larger_one_keeps_usage():
    bucket = Bucket(capacity=100, per_minute=60, now_ms=0)

    assert bucket.configure(40, 60, 0) == 40 * TICKS
    assert bucket.configure(1000, 60, 0) == 40 * TICKS


def test_bucket_without_refill_says_never_rather_than_dividing_by_zero():
    assert wait_ms(0, 1, 10, 0) == NEVER
    assert shown(0, 10, 0).reset_ms == 0
