"""A lease spends what was taken from the store, and nothing else, whatever comes in between."""

from hypothesis import given, settings
from hypothesis import strategies as st

from quotas.leases import CHUNKS_MAX, Chunk, Lease, size_of
from quotas.limits import Charge, Limit
from tests.support.limits import bucket, slots

LIMIT = bucket("A", capacity=1_000, per_minute=600)


def lease(limit=LIMIT):
    return Lease(Charge(limit, 0))


def chunk(amount, name="c"):
    return Chunk(name, amount)


def drawn(made, amount):
    """A draw of an empty lease that was granted all of it."""
    lacking = made.draw(amount, 0.0)
    made.asking -= lacking
    made.granted(chunk(lacking), "e")


def test_a_draw_takes_what_is_there_and_says_what_it_lacks():
    made = lease()
    assert made.draw(30, 0.0) == 30
    made.asking -= 30
    made.granted(chunk(100), "e")
    assert made.left == 70
    assert made.draw(50, 0.0) == 0
    assert made.draw(50, 0.0) == 30


def test_a_draw_does_not_ask_again_for_what_another_waits_for():
    made = lease()
    assert made.draw(40, 0.0) == 40
    assert made.draw(10, 0.0) == 10
    made.undo(40, 40)
    assert (made.left, made.asking) == (-10, 10)
    assert made.draw(5, 0.0) == 5


def test_debt_is_asked_for_with_the_next_draw():
    made = lease()
    drawn(made, 10)
    made.back(10, 25)
    assert made.left == -15
    assert made.draw(10, 0.0) == 25


def test_debt_of_an_idle_lease_is_told_to_the_store():
    made = lease()
    drawn(made, 10)
    made.back(10, 25)
    assert [(each.charged, each.epoch) for each in made.give_back(0)] == [(25, "e")]
    assert (made.left, made.spent, made.chunks) == (0, 0, [])


def test_what_is_not_wanted_goes_back_once_its_chunk_can_be_closed():
    made = lease()
    made.granted(chunk(100), "e")
    made.draw(10, 0.0)
    assert made.give_back(0) == []  # ten of it are out
    made.back(10, 4)
    assert [(each.chunk.amount, each.charged) for each in made.give_back(0)] == [(100, 4)]


def test_what_is_worth_keeping_is_a_seconds_demand_within_the_part():
    made = lease()
    made.draw(40, 10.0)
    assert made.keep(1, 10.5) == 40
    made.draw(400, 10.9)
    assert made.keep(1, 10.9) == size_of(LIMIT, 1) == 100
    assert made.keep(4, 10.9) == 25
    assert made.keep(1, 13.0) == 0


def test_many_chunks_are_closed_as_they_are_used_up():
    made = lease()
    for number in range(CHUNKS_MAX + 5):
        made.granted(chunk(10, f"c{number}"), "e")
        made.draw(10, 0.0)
        made.back(10, 10)
    closed = made.give_back(100)
    assert len(closed) == 5
    assert {each.charged for each in closed} == {10}


def test_another_epoch_charges_what_was_spent_and_forgets_what_was_left():
    made = lease()
    made.granted(chunk(100, "old"), "e1")
    made.draw(30, 0.0)
    made.draw(20, 0.0)
    made.back(20, 15)
    closed = made.granted(chunk(40, "new"), "e2")
    assert [(each.chunk.id, each.charged, each.epoch) for each in closed] == [("old", 15, "e1")]
    assert (made.left, made.out, made.chunks) == (10, 30, [chunk(40, "new")])


def test_holds_that_may_have_gone_free_are_debt_until_they_are_held_again():
    made = lease(slots("A", capacity=50))
    made.granted(chunk(5, "old"), "e")
    made.draw(1, 0.0)
    assert [each.charged for each in made.restart()] == [0]
    assert (made.left, made.out) == (-1, 1)
    made.granted(chunk(1, "again"), "e")
    assert made.left == 0


def test_a_shadow_limit_is_asked_for_as_any_other():
    shadow = Limit("A", "platform", "tokens", "bucket", 10, 10, 1, shadow=True)
    made = lease(shadow)
    assert made.limit.shadow is False
    first = made.limit
    made.adopt(Charge(shadow, 1))
    assert made.limit is first


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["draw", "back", "more", "give", "grant", "refuse", "epoch"]),
        st.integers(0, 120),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(_STEPS)
def test_open_chunks_are_always_what_is_left_out_and_spent(steps):
    """And over all of it the store is charged for all that was used, and not less."""
    made, opened, used, epoch = lease(), [], 0, "e0"
    waiting: list[tuple[int, int]] = []
    taken = charged = 0
    indebted = False

    def settle(closed):
        nonlocal taken, charged
        for each in closed:
            charged += each.charged
            taken -= each.chunk.amount if each.epoch == epoch else 0

    for number, (step, amount) in enumerate(steps):
        if step == "draw":
            lacking = made.draw(amount, float(number))
            (waiting.append((amount, lacking)) if lacking else opened.append(amount))
        elif step in ("back", "more") and opened:
            drew = opened.pop(0)
            came_to = drew + amount if step == "more" else min(drew, amount)
            used += came_to
            indebted |= came_to > drew
            made.back(drew, came_to)
        elif step == "give":
            settle(made.give_back(amount))
        elif step in ("grant", "epoch") and waiting:
            if step == "epoch":
                epoch, taken, indebted = f"e{number}", 0, True
            drew, lacking = waiting.pop(0)
            made.asking -= lacking
            closed = made.granted(chunk(lacking, f"c{number}"), epoch)
            settle(closed)
            taken += lacking
            opened.append(drew)
        elif step == "refuse" and waiting:
            made.undo(*waiting.pop(0))
        assert sum(each.amount for each in made.chunks) == made.left + made.out + made.spent
        assert sum(each.amount for each in made.chunks) == taken
        if not indebted:  # who was let through draws on what was taken, and on nothing else
            assert sum(opened) <= sum(each.amount for each in made.chunks)
    for each in waiting:
        made.undo(*each)
    for drew in opened:
        used += drew
        made.back(drew, drew)
    if made.chunks:
        settle(made.give_back(0))
    assert charged + made.spent == used
