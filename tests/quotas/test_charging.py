"""A record becomes a charge: the whole chain, for each billing model and for all at random."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from quotas.charging import Account, Charged, charge
from quotas.contracts import Contract, ThroughputTerm, shortfall
from quotas.grants import Grant, in_order
from quotas.money import parse_price
from quotas.pricing import Price
from quotas.record import UsageRecord
from quotas.shares import Share
from tests.support.records import START_MS, record

MONTH = 202701
PRICE = Price(
    id=1,
    version=1,
    currency="USD",
    nano={
        "input": parse_price("1"),
        "cached_input": parse_price("0.25"),
        "output": parse_price("4"),
    },
)
#: 1,000 in and 1,000 out at 1 and 4 a million.
COST = 5_000_000


def a_record(number: int = 1, prompt: int = 1_000, completion: int = 1_000) -> UsageRecord:
    usage = {"prompt_tokens": prompt, "cached_tokens": 0, "completion_tokens": completion}
    return record(number, usage=usage, started_ms=START_MS)[1]


def contract(kind: str, **fields: object) -> Contract:
    made = Contract(id=3, version=1, tenant_id=1, kind="payg")
    return msgspec.structs.replace(made, kind=kind, **fields)


def term(overflow: str = "spill") -> ThroughputTerm:
    return msgspec.convert(
        {
            "id": 9,
            "tenant_id": 1,
            "model_id": 1,
            "tokens_per_minute": 3_000,
            "hour_nano": 1,
            "currency": "USD",
            "overflow": overflow,
            "accepted_ms": START_MS - 1,
            "until_ms": START_MS + 10**9,
        },
        ThroughputTerm,
    )


def by_account(charged: Charged) -> dict[str, int]:
    return {posting.account: posting.nano for posting in charged.entry.postings}


def run(bought, account: Account | None = None, **options: object) -> Charged:
    values = {"term": None, "shares": (), "month": MONTH, "price": PRICE} | options
    return charge(
        values.pop("record", a_record()),
        contract=bought,
        account=account or Account(),
        **values,
    )


def test_pay_as_you_go_owes_what_the_price_says():
    charged = run(contract("payg"))

    assert charged.charged_nano == charged.list_nano == COST
    assert by_account(charged) == {"receivable": COST, "revenue": -COST}


def test_the_free_tier_is_shown_its_price_and_owes_nothing():
    charged = run(contract("free"))

    assert (charged.list_nano, charged.charged_nano, charged.entry) == (COST, 0, None)


def test_a_model_without_a_price_costs_nothing():
    assert run(contract("payg"), price=None).entry is None


def test_prepaid_uses_promotions_first_and_a_promotion_is_nobodys_sale():
    account = Account(
        grants=in_order(
            [
                Grant(id=1, kind="paid", left_nano=10 * COST),
                Grant(id=2, kind="promotional", left_nano=COST // 5),
            ]
        )
    )
    share = Share(publisher_id=7, basis_points=7_000)

    charged = run(contract("prepaid"), account, shares=(share,))

    net = COST - COST // 5
    assert by_account(charged) == {
        "customer_prepaid": net,
        "promotional": COST // 5,
        "revenue": -COST // 5,
        "publisher_payable": -net * 7 // 10,
        "platform_fee": -net * 3 // 10,
    }
    assert [(each.grant_id, each.nano) for each in charged.draws] == [(2, COST // 5), (1, net)]


def test_prepaid_beyond_its_grants_is_owed_not_lost():
    account = Account(grants=[Grant(id=1, kind="paid", left_nano=COST - 1)])

    charged = run(contract("prepaid"), account)

    assert by_account(charged) == {"customer_prepaid": COST - 1, "receivable": 1, "revenue": -COST}


def test_a_commitment_is_used_at_the_price_and_exceeded_at_the_overage_price():
    bought = contract("commitment", commitment_nano=COST * 3 // 2, overage_ppm=1_500_000)
    account = Account()

    first, second = run(bought, account), run(bought, account, record=a_record(2))

    assert (first.charged_nano, first.inside_nano) == (COST, COST)
    assert (second.charged_nano, second.inside_nano) == (COST // 2 + COST * 3 // 4, COST // 2)
    assert account.committed == {MONTH: COST * 3 // 2}
    assert shortfall(bought.commitment_nano, account.committed[MONTH]) == 0


def test_a_term_covers_what_was_admitted_on_it_whole_and_nothing_else():
    account = Account()
    records = [msgspec.structs.replace(a_record(n), reserved=n != 1) for n in range(3)]

    charged = [run(contract("payg"), account, term=term(), record=each) for each in records]

    assert [each.charged_nano for each in charged] == [0, COST, 0]
    assert [each.covered_tokens for each in charged] == [2_000, 0, 2_000]
    assert sum(account.reserved.values()) == 4_000


def test_what_says_reserved_and_has_no_term_is_sold_as_to_everybody():
    record = msgspec.structs.replace(a_record(), reserved=True)

    assert run(contract("payg"), term=None, record=record).charged_nano == COST


@st.composite
def worlds(draw):
    bought = draw(
        st.sampled_from(
            [
                None,
                contract("free"),
                contract("payg"),
                contract("prepaid"),
                contract("commitment", commitment_nano=7_000_000, overage_ppm=1_234_567),
            ]
        )
    )
    grants = [
        Grant(
            id=number,
            kind=draw(st.sampled_from(["paid", "promotional"])),
            left_nano=draw(st.integers(0, 10**7)),
        )
        for number in range(draw(st.integers(0, 3)))
    ]
    records = [
        msgspec.structs.replace(
            a_record(number, draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))),
            reserved=draw(st.booleans()),
        )
        for number in range(draw(st.integers(1, 6)))
    ]
    sold = draw(st.sampled_from([(), (Share(publisher_id=1, basis_points=3_333),)]))
    return bought, grants, records, sold, draw(st.sampled_from([None, term()]))


@settings(max_examples=300)
@given(worlds())
def test_every_entry_sums_to_zero_and_says_what_was_charged(world):
    bought, grants, records, sold, reserved = world
    account = Account(grants=in_order(grants))
    for each in records:
        charged = charge(each, PRICE, bought, reserved, account, sold, MONTH)
        postings = charged.entry.postings if charged.entry else ()
        paid = [
            posting.nano
            for posting in postings
            if posting.account in ("customer_prepaid", "receivable", "promotional")
        ]

        assert sum(posting.nano for posting in postings) == 0
        assert sum(paid) == charged.charged_nano
        assert sum(line.amount for line in charged.lines) == charged.list_nano
        if bought is None or bought.kind != "commitment":
            assert charged.charged_nano <= charged.list_nano


@given(worlds())
def test_the_same_ledger_charged_again_is_the_same_to_the_bit(world):
    bought, grants, records, sold, reserved = world

    def replay() -> bytes:
        account = Account(grants=in_order([msgspec.structs.replace(each) for each in grants]))
        return msgspec.json.encode(
            [charge(each, PRICE, bought, reserved, account, sold, MONTH) for each in records]
        )

    assert replay() == replay()
