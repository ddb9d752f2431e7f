"""What an answer means, and how long to wait after it."""

import pytest

from gateway.control.retries import DELAY_MAX_S, delay_s, retry_after_s, verdict


@pytest.mark.parametrize(
    ("statuses", "meaning"),
    [
        ((200, 201, 202, 204), "delivered"),
        ((400, 409, 413, 422), "refused"),
        ((0, 301, 302, 401, 403, 404, 405, 408, 410, 425, 429, 500, 502, 503, 504), "again"),
    ],
)
def test_only_what_speaks_of_the_event_refuses_it(statuses, meaning):
    assert {verdict(status) for status in statuses} == {meaning}


def test_delays_double_up_to_a_ceiling_with_up_to_half_off():
    assert [delay_s(n, 0.0, None) for n in (1, 2, 3, 9, 10, 5_000)] == [
        1.0, 2.0, 4.0, 256.0, DELAY_MAX_S, DELAY_MAX_S,
    ]  # fmt: skip
    assert 0.5 < delay_s(1, 0.999, None) < 0.501


def test_a_receivers_wish_lengthens_a_delay_and_never_shortens_it():
    assert delay_s(1, 0.0, 30.0) == 30.0
    assert delay_s(4, 0.0, 1.0) == 8.0
    assert delay_s(1, 0.0, 10**9) == 3_600.0


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        (b"120", 120.0),
        (b" 7 ", 7.0),
        (b"Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        (b"Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        (b"soon", None),
        (b"-1", None),
        (b"", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, wait_s):
    assert retry_after_s([(b"Retry-After", value)], 1_800_000_000) == wait_s


def test_an_answer_without_a_wish_has_none():
    assert retry_after_s([(b"content-length", b"0")], 0) is None
