"""Entries balance, and a reversal undoes exactly what it names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotas.entries import Entry, Posting, Unbalanced, balanced, balances, move, reversal


def use(*postings: Posting) -> Entry:
    return Entry(
        key="use:1", kind="use", tenant_id=1, currency="USD", occurred_ms=1, postings=postings
    )


def test_an_entry_that_is_one_nano_off_is_refused():
    balanced(use(Posting("receivable", 5), Posting("revenue", -5)))
    with pytest.raises(Unbalanced, match="use:1: postings are off by 1 nano"):
        balanced(use(Posting("receivable", 6), Posting("revenue", -5)))


@given(st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=5))
def test_an_entry_and_its_reversal_leave_nothing(amounts):
    postings = [Posting("receivable", nano) for nano in amounts]
    entry = use(*postings, Posting("revenue", -sum(amounts)))

    undone = reversal(entry, "reversal:1", 7)

    assert not any(balances([entry, undone]).values())
    assert (undone.reverses, undone.occurred_ms) == ("use:1", 7)


def test_money_in_moves_from_cash_to_what_is_owed_to_the_customer():
    entry = move("topup:1", "topup", 1, "USD", 1, "cash", "customer_prepaid", 50)

    assert balances([entry]) == {("USD", "cash"): 50, ("USD", "customer_prepaid"): -50}


def test_a_payout_names_its_publisher():
    entry = move("payout:1", "payout", 0, "USD", 1, "publisher_payable", "cash", 50, 7)

    assert [posting.publisher_id for posting in entry.postings] == [7, 0]
