"""A storm costs the store nothing; what was refused can be explained."""

from gateway.refusals import ASK_AGAIN_S, RECENT_MAX, Refusal, Refusals, used_of
from quotas.limits import Charge, Level, Verdict
from tests.support.limits import bucket, slots

TOKENS = bucket("k1", capacity=1000, per_minute=600)


def verdict(remaining=0, retry_after_ms=5_000, reason="rate", binding=0):
    return Verdict(False, (Level(remaining, 9_000),), "e", binding, retry_after_ms, reason)


def charge(amount=100, limit=TOKENS):
    return (Charge(limit, amount),)


def test_a_limit_that_is_over_is_refused_from_memory_with_what_is_left_of_its_wait():
    refusals = Refusals()
    refusals.remember(charge(), verdict(), 10.0)

    again = refusals.recall(charge(), 10.4)
    assert again is not None
    assert (again.retry_after_ms, again.reason, again.limit) == (4_600, "rate", TOKENS)


def test_a_larger_request_is_told_to_wait_longer_and_a_smaller_one_asks_the_store():
    refusals = Refusals()
    refusals.remember(charge(100), verdict(), 10.0)

    larger = refusals.recall(charge(110), 10.0)
    assert larger is not None
    assert larger.retry_after_ms == 5_000 + 1_000  # ten more at ten a second
    assert refusals.recall(charge(99), 10.0) is None
    assert refusals.recall(charge(1001), 10.0) is None  # never, not later


def test_the_store_is_asked_again_every_second_and_when_the_wait_is_over():
    refusals = Refusals()
    refusals.remember(charge(), verdict(), 10.0)
    assert refusals.recall(charge(), 10.0 + ASK_AGAIN_S) is None

    refusals.remember(charge(), verdict(retry_after_ms=300), 20.0)
    assert refusals.recall(charge(), 20.29) is not None
    assert refusals.recall(charge(), 20.3) is None


def test_an_ended_request_makes_room_at_once():
    refusals = Refusals()
    refusals.remember(charge(), verdict(), 10.0)
    refusals.forget(charge(5))

    assert refusals.recall(charge(), 10.1) is None


def test_a_changed_limit_is_another_limit():
    refusals = Refusals()
    refusals.remember(charge(), verdict(), 10.0)

    assert refusals.recall(charge(limit=bucket("k1", capacity=1000, per_minute=600)), 10.1) is None


def test_what_says_nothing_of_a_level_is_not_remembered():
    refusals = Refusals()
    for reason in ("unbuilt", "skewed", "never"):
        refusals.remember(charge(), verdict(retry_after_ms=-1, reason=reason), 10.0)

    assert refusals.recall(charge(), 10.0) is None


def test_a_spent_budget_is_remembered_though_no_wait_helps():
    refusals = Refusals()
    refusals.remember(charge(), verdict(retry_after_ms=-1, reason="balance_spent"), 10.0)

    again = refusals.recall(charge(), 10.2)
    assert again is not None
    assert again.retry_after_ms == -1


def test_holds_are_asked_for_again_soon():
    refusals = Refusals()
    limit = slots("k1")
    held = verdict(retry_after_ms=1_000, reason="concurrency")
    refusals.remember(charge(1, limit), held, 10.0)

    assert refusals.recall(charge(1, limit), 10.05) is not None
    assert refusals.recall(charge(1, limit), 10.1) is None


def refusal(at_ms):
    return Refusal(
        at_ms=at_ms, model="m", scope="key a", dimension="tokens", window="minute", limit=1,
        used=1, requested=1, retry_after_ms=1, reason="rate",
    )  # fmt: skip


def test_the_last_hundred_of_each_key_are_kept():
    refusals = Refusals()
    for at_ms in range(RECENT_MAX + 5):
        refusals.note(1, refusal(at_ms))
    refusals.note(2, refusal(7))

    assert [each.at_ms for each in refusals.recent(1)] == list(range(5, RECENT_MAX + 5))
    assert len(refusals.recent(2)) == 1
    assert refusals.recent(3) == ()


def test_used_includes_debt():
    assert used_of(TOKENS, -50) == 1050
    assert used_of(TOKENS, 1200) == 0
