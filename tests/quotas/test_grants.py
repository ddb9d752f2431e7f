"""Credits are used in order, to the nano, and never twice."""

from hypothesis import given
from hypothesis import strategies as st

from quotas.grants import Grant, draw, in_order


@st.composite
def grants(draw_):
    return [
        Grant(
            id=number,
            kind=draw_(st.sampled_from(["promotional", "paid"])),
            left_nano=draw_(st.integers(0, 1_000)),
            priority=draw_(st.integers(1, 3)),
            expires_ms=draw_(st.sampled_from([0, 500, 1_500])),
        )
        for number in range(draw_(st.integers(0, 6)))
    ]


@given(grants(), st.lists(st.integers(0, 500), max_size=12), st.integers(0, 2_000))
def test_what_is_drawn_and_what_is_owed_is_what_was_asked(held, asked, at_ms):
    ordered = in_order(held)
    before = sum(grant.left_nano for grant in ordered)
    drawn = owed = 0
    for nano in asked:
        draws, rest = draw(ordered, nano, at_ms)
        assert sum(each.nano for each in draws) + rest == nano
        drawn += sum(each.nano for each in draws)
        owed += rest

    assert before - sum(grant.left_nano for grant in ordered) == drawn
    assert min((grant.left_nano for grant in ordered), default=0) >= 0
    usable = sum(g.left_nano for g in ordered if not g.expires_ms or at_ms < g.expires_ms)
    assert owed == 0 or usable == 0


def test_promotions_go_first_then_priority_then_what_ends_sooner():
    paid_soon = Grant(id=1, kind="paid", left_nano=10, expires_ms=100)
    paid_first = Grant(id=2, kind="paid", left_nano=10, priority=1)
    paid_never = Grant(id=3, kind="paid", left_nano=10)
    promotion = Grant(id=4, kind="promotional", left_nano=10, priority=900)

    order = in_order([paid_never, paid_soon, paid_first, promotion])

    assert [grant.id for grant in order] == [4, 2, 1, 3]


def test_a_grant_pays_for_what_was_asked_before_it_ended():
    grant = Grant(id=1, kind="paid", left_nano=10, expires_ms=100)

    assert draw([grant], 4, 100) == ((), 4)
    assert draw([grant], 4, 99)[1] == 0
