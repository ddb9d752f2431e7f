"""Months are closed once, in order, adding up; late, reversed and re-priced go to the open one."""

import random
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select

from gateway.store import contracts, corrections, credit, statements
from gateway.store.accounts import Conflict
from gateway.store.database import Database
from gateway.store.ledger import insert_records
from gateway.store.schema import grants, postings, usage_lines, usage_records
from quotas.contracts import ThroughputTerm
from quotas.statement import Statement, StatementWrong
from tests.gateway.store.test_books import COST, document
from tests.support.applying import NOW_MS, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import record

__all__ = ["database_url", "db", "postgres"]

JANUARY, FEBRUARY, MARCH = 202701, 202702, 202703


def moment(month: int, day: int = 2) -> int:
    return int(datetime(2027, month, day, tzinfo=UTC).timestamp()) * 1000


def use(number: int, at_ms: int, **fields: Any) -> Any:
    usage = {"prompt_tokens": 1_000, "completion_tokens": 1_000}
    return record(number, **({"usage": usage, "started_ms": at_ms} | fields))


def sign(_document: bytes) -> tuple[bytes, bytes]:
    return b"signature", b"key"


async def close(db: Database, month: int, kind: Any = "tenant", name: str = "acme") -> Statement:
    now_ms = moment(month % 100 + 1, 3)
    async with db.begin() as connection:
        (made,) = await statements.close(connection, kind, name, month, now_ms, sign)
    return made


async def test_a_statement_is_the_ledgers_sum_and_can_be_made_again(db: Database) -> None:
    await apply(db, document({"kind": "payg"}))
    await insert_records(db, [use(1, moment(1, 20)), use(2, moment(1, 20)), use(3, moment(2))])

    made = await close(db, JANUARY)

    assert (made.number, made.period, made.records, made.charged_nano) == (
        1,
        "2027-01",
        2,
        2 * COST,
    )
    assert [(line.meter, line.units, line.amount_nano) for line in made.lines] == [
        ("input", 2_000, 2_000_000),
        ("output", 2_000, 8_000_000),
    ]
    assert (made.opening, made.closing) == ({}, {"receivable": 2 * COST})
    async with db.read() as connection:
        row = await statements.one(connection, 1)
        assert await statements.recompute(connection, 1) == row["document"]
    february = await close(db, FEBRUARY)
    assert (february.number, february.opening) == (2, {"receivable": 2 * COST})
    assert february.closing == {"receivable": 3 * COST}


async def test_a_late_record_goes_to_the_next_month_and_changes_no_closed_one(
    db: Database,
) -> None:
    await apply(db, document({"kind": "payg"}))
    await insert_records(db, [use(1, moment(1, 20))])
    await close(db, JANUARY)
    await insert_records(db, [use(2, moment(1, 21))])

    async with db.read() as connection:
        row = await statements.one(connection, 1)
        assert await statements.recompute(connection, 1) == row["document"]
    february = await close(db, FEBRUARY)
    assert (february.records, february.charged_nano) == (1, COST)


async def test_a_reversed_record_is_taken_off_the_open_month(db: Database) -> None:
    await apply(db, document({"kind": "payg"}))
    await insert_records(db, [use(1, moment(1, 20))])
    await close(db, JANUARY)
    async with db.begin() as connection:
        done = await corrections.reverse_record(connection, _id(1), moment(2))
    with pytest.raises(Conflict, match="reversed already"):
        async with db.begin() as connection:
            await corrections.reverse_record(connection, _id(1), moment(2))

    assert done["reverses"] == f"use:{_id(1)}"
    february = await close(db, FEBRUARY)
    assert (february.charged_nano, february.closing) == (-COST, {})
    assert [(line.meter, line.amount_nano) for line in february.lines] == [("reversed", -COST)]


async def test_a_repriced_record_costs_its_new_price_in_the_open_month(db: Database) -> None:
    await apply(db, document({"kind": "payg"}))
    await insert_records(db, [use(1, moment(1, 20))])
    await close(db, JANUARY)
    cheaper = document()
    cheaper["models"][0]["price"] = {"currency": "USD", "input": "0.5", "output": "2"}
    await apply(db, cheaper)
    async with db.begin() as connection:
        done = await corrections.reprice_record(connection, _id(1), 2, moment(2))

    assert done["charged_nano"] == COST // 2
    february = await close(db, FEBRUARY)
    assert (february.charged_nano, february.closing) == (-COST // 2, {"receivable": COST // 2})
    async with db.begin() as connection:
        again = await corrections.reprice_record(connection, _id(1), 1, moment(3))
    assert again["reverses"] == f"reprice:{_id(1)}:1"
    march = await close(db, MARCH)
    assert march.closing == {"receivable": COST}


async def test_what_grants_paid_comes_back_to_grants(db: Database) -> None:
    await apply(db, document({"kind": "prepaid"}))
    async with db.begin() as connection:
        await credit.add_credit(connection, _credit(COST), NOW_MS)
    await insert_records(db, [use(1, moment(1, 20))])
    async with db.begin() as connection:
        await corrections.reverse_record(connection, _id(1), moment(1, 21))
        assert await connection.scalar(select(func.sum(grants.c.left_nano))) == COST
        found = await credit.balances(connection, [1], moment(1, 22))
    assert found[1].available_nano == COST
    assert (await close(db, JANUARY)).closing == {"customer_prepaid": -COST}


async def test_a_commitment_is_trued_up_when_its_month_is_closed(db: Database) -> None:
    await apply(db, document({"kind": "commitment", "commitment": "0.02"}))
    await insert_records(db, [use(1, moment(1, 20))])

    made = await close(db, JANUARY)

    assert made.charged_nano == 20_000_000
    shortfall = [line for line in made.lines if line.meter == "commitment_shortfall"]
    assert [line.amount_nano for line in shortfall] == [20_000_000 - COST]
    assert (await close(db, FEBRUARY)).charged_nano == 20_000_000, "an idle month is owed whole"


async def test_reserved_hours_are_billed_from_acceptance_whether_used_or_not(
    db: Database,
) -> None:
    await apply(db, document({"kind": "payg"}))
    accepted = moment(1, 31)
    async with db.begin() as connection:
        term_id = await contracts.ask_for_term(connection, _term(), NOW_MS)
        await contracts.accept_term(connection, term_id, accepted)
    await insert_records(db, [use(1, accepted + 5, reserved=True)])

    january, february = await close(db, JANUARY), await close(db, FEBRUARY)

    assert january.charged_nano == 24 * 10**9
    assert february.charged_nano == 28 * 24 * 10**9
    assert {line.meter: line.amount_nano for line in january.lines} == {
        "input": 1_000_000,
        "output": 4_000_000,
        "throughput_covered": -COST,
        "throughput": 24 * 10**9,
    }


async def test_a_publishers_statement_is_what_was_earned_less_what_was_paid_out(
    db: Database,
) -> None:
    shares = {"shares": [{"publisher": "labs", "percent": "70"}]}
    await apply(db, document({"kind": "payg"}, model=shares, publishers=[{"name": "labs"}]))
    await insert_records(db, [use(1, moment(1, 20)), use(2, moment(2))])

    january = await close(db, JANUARY, "publisher", "labs")
    await insert_records(db, [use(3, moment(1, 20))])
    february = await close(db, FEBRUARY, "publisher", "labs")

    assert (january.charged_nano, january.records) == (COST * 7 // 10, 1)
    assert (february.charged_nano, february.records) == (2 * COST * 7 // 10, 2)
    assert february.closing == {"publisher_payable": -3 * COST * 7 // 10}
    assert (await close(db, JANUARY)).charged_nano == 2 * COST, "a tenant's months are its own"


async def test_months_close_in_order_when_they_are_over_and_once(db: Database) -> None:
    await apply(db, document({"kind": "payg"}))
    await insert_records(db, [use(1, moment(1, 20)), use(2, moment(2))])
    for month, now_ms, said in (
        (JANUARY, moment(1, 31), "2027-01 is not over"),
        (FEBRUARY, moment(3), "2027-01 is still open"),
    ):
        with pytest.raises(Conflict, match=said):
            async with db.begin() as connection:
                await statements.close(connection, "tenant", "acme", month, now_ms, sign)
    await close(db, JANUARY)
    with pytest.raises(Conflict, match="2027-01 is closed"):
        await close(db, JANUARY)


@pytest.mark.parametrize("seeded", ["a posting", "a line", "a record"])
async def test_what_does_not_add_up_is_not_closed(db: Database, seeded: str) -> None:
    await apply(db, document({"kind": "payg"}))
    await insert_records(db, [use(1, moment(1, 20))])
    async with db.begin() as connection:
        if seeded == "a posting":
            nano = {"nano": postings.c.nano + 1}
            await connection.execute(
                postings.update().where(postings.c.account == "receivable").values(nano)
            )
        elif seeded == "a line":
            nano = {"nano": usage_lines.c.nano + 1}
            await connection.execute(
                usage_lines.update().where(usage_lines.c.meter == "input").values(nano)
            )
        else:
            nano = {"charged_nano": usage_records.c.charged_nano + 1}
            await connection.execute(usage_records.update().values(nano))
    with pytest.raises(StatementWrong):
        await close(db, JANUARY)


async def test_a_credit_taken_back_is_owed_as_far_as_it_was_used(db: Database) -> None:
    await apply(db, document({"kind": "prepaid"}))
    async with db.begin() as connection:
        await credit.add_credit(connection, _credit(3 * COST), moment(1, 16))
    await insert_records(db, [use(1, moment(1, 20))])
    async with db.begin() as connection:
        await credit.reverse_credit(connection, 1, "wire-1", moment(1, 21))
        found = await credit.balances(connection, [1], moment(1, 22))
    assert found[1].available_nano == -COST
    async with db.begin() as connection:
        paid = msgspec.structs.replace(_credit(5 * COST), reference="wire-2")
        done = await credit.add_credit(connection, paid, moment(1, 23))
        found = await credit.balances(connection, [1], moment(1, 24))
    assert (done["settled_nano"], found[1].available_nano) == (COST, 4 * COST)
    assert (await close(db, JANUARY)).closing == {"customer_prepaid": -4 * COST}


async def test_a_grant_ends_hours_after_its_time_and_what_is_left_is_breakage(
    db: Database,
) -> None:
    await apply(db, document({"kind": "prepaid"}))
    expires_ms = moment(1, 25)
    ending = msgspec.structs.replace(_credit(COST), expires_ms=expires_ms)
    async with db.begin() as connection:
        await credit.add_credit(connection, ending, moment(1, 16))
        assert await credit.expire_grants(connection, expires_ms) == 0
        found = await credit.balances(connection, [1], expires_ms)
        assert found[1].available_nano == 0, "nothing new is bought with it"
    late = use(1, expires_ms - 1, usage={"prompt_tokens": 1_000, "completion_tokens": 0})
    await insert_records(db, [late])
    async with db.begin() as connection:
        now_ms = expires_ms + credit.EXPIRY_GRACE_MS
        assert await credit.expire_grants(connection, now_ms) == 1
        assert await credit.expire_grants(connection, now_ms) == 0
    made = await close(db, JANUARY)
    assert (made.charged_nano, made.closing) == (1_000_000, {})


@pytest.fixture
async def sqlite(tmp_path: Any) -> Any:
    from gateway.store.database import open_database  # noqa: PLC0415

    database = open_database(None, tmp_path)
    await database.migrate()
    yield database
    await database.close()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_each_statement_is_the_ledger_to_the_nano(
    sqlite: Database, seed: int
) -> None:
    """Late, doubled, reversed, re-priced and paid at random over four months and two publishers."""
    dice = random.Random(seed)
    kind = dice.choice(["payg", "prepaid", "commitment"])
    contract: dict[str, Any] = {"kind": kind}
    if kind == "commitment":
        contract |= {"commitment": "0.03", "overage": "1.234567"}
    shares = {"shares": [{"publisher": "labs", "percent": "33.33"},
                         {"publisher": "host", "percent": "12.5", "floor": "0.1"}]}  # fmt: skip
    names = [{"name": "labs"}, {"name": "host"}]
    await apply(sqlite, document(contract, model=shares, publishers=names))
    cheaper = document()
    cheaper["models"][0]["price"] = {"currency": "USD", "input": "0.777777777", "output": "3"}
    await apply(sqlite, cheaper)
    known: list[str] = []
    total = 0
    for month in range(1, 5):
        for _ in range(8):
            now_ms = moment(month, dice.randint(16 if month == 1 else 1, 27))
            await _something(sqlite, dice, known, now_ms)
        if month < 4:
            total += (await close(sqlite, 202700 + month)).charged_nano
            for name in ("labs", "host"):
                await close(sqlite, 202700 + month, "publisher", name)
    total += (await close(sqlite, 202704)).charged_nano
    async with sqlite.read() as connection:
        off = await connection.execute(
            select(postings.c.entry_key).group_by(postings.c.entry_key, postings.c.currency)
            .having(func.sum(postings.c.nano) != 0)
        )  # fmt: skip
        assert list(off) == []
        charged = await connection.scalar(
            select(func.sum(postings.c.nano)).where(
                postings.c.kind.in_(["use", "reprice", "reversal", "shortfall"]),
                postings.c.account.in_(["customer_prepaid", "receivable", "promotional"]),
            )
        )
        assert int(charged or 0) == total
        for row in await statements.listed(connection):
            kept = await statements.one(connection, row["number"])
            assert await statements.recompute(connection, row["number"]) == kept["document"]


async def _something(db: Database, dice: random.Random, known: list[str], now_ms: int) -> None:
    choice = dice.random()
    if choice < 0.6 or not known:
        number = len(known) + 1
        started_ms = max(NOW_MS + 2, now_ms - dice.choice([0, 0, 40 * 86_400_000]))
        usage = {"prompt_tokens": dice.randint(0, 9_999), "completion_tokens": dice.randint(0, 999)}
        one = record(number, usage=usage, started_ms=started_ms)
        await insert_records(db, [one] if dice.random() < 0.7 else [one, one])
        known.append(one[1].request_id)
        return
    async with db.begin() as connection:
        try:
            if choice < 0.75:
                await corrections.reverse_record(connection, dice.choice(known), now_ms)
            elif choice < 0.9:
                version = dice.choice([1, 2])
                await corrections.reprice_record(connection, dice.choice(known), version, now_ms)
            else:
                more = msgspec.structs.replace(
                    _credit(dice.randint(1, 10**7)), reference=f"r{now_ms}-{choice}"
                )
                await credit.add_credit(connection, more, now_ms)
        except Conflict:
            pass


def _id(number: int) -> str:
    return f"{number:032x}"


def _credit(nano: int) -> credit.Credit:
    return credit.Credit(
        tenant_id=1, kind="paid", amount_nano=nano, currency="USD", reference="wire-1"
    )


def _term() -> ThroughputTerm:
    return ThroughputTerm(
        id=0,
        tenant_id=1,
        model_id=1,
        tokens_per_minute=3_000,
        hour_nano=10**9,
        currency="USD",
        overflow="spill",
        accepted_ms=0,
        until_ms=moment(12),
    )
