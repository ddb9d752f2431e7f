"""What records leave in the books, on SQLite and PostgreSQL: every billing model, every sum."""

import asyncio
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select

from gateway.declared.document import parse
from gateway.store import accounts, contracts, credit
from gateway.store.catalog import prices_in_force
from gateway.store.database import Database
from gateway.store.entries import drifts
from gateway.store.ledger import insert_records
from gateway.store.schema import (
    account_sums,
    commitment_use,
    grants,
    postings,
    publishers,
    tenants,
    throughput_use,
    usage_lines,
    usage_records,
)
from gateway.store.spending import Scope, spent_micro
from quotas.contracts import HOUR_MS, ThroughputTerm
from tests.support.applying import FULL, NOW_MS, applier, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import START_MS, record

__all__ = ["database_url", "db", "postgres"]

#: 1,000 tokens in and 1,000 out at 1 and 4 a million, in nano-units.
COST = 5_000_000


def document(contract: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = msgspec.to_builtins(FULL)
    made["models"][0]["price"] = {"currency": "USD", "input": "1", "output": "4"}
    made["models"][0] |= more.pop("model", {})
    if contract is not None:
        made["tenants"][0]["contract"] = contract
    return made | more


def use(number: int, prompt: int = 1_000, completion: int = 1_000, **fields: Any) -> Any:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return record(number, **({"usage": usage, "started_ms": NOW_MS + 1_000} | fields))


async def balances_of(db: Database) -> dict[str, int]:
    """Account -> nano, by the postings themselves."""
    async with db.read() as connection:
        rows = await connection.execute(
            select(postings.c.account, func.sum(postings.c.nano)).group_by(postings.c.account)
        )
        assert await drifts(connection) == []
        return {account: int(nano) for account, nano in rows if nano}


async def test_pay_as_you_go_is_owed_and_listed_by_meter(db: Database) -> None:
    await apply(db, document({"kind": "payg"}))
    await insert_records(db, [use(1), use(2)])

    assert await balances_of(db) == {"receivable": 2 * COST, "revenue": -2 * COST}
    async with db.read() as connection:
        rows = await connection.execute(select(usage_lines.c.meter, usage_lines.c.units,
                                               usage_lines.c.nano))  # fmt: skip
        assert sorted(tuple(row) for row in rows) == [
            ("input", 2_000, 2_000_000),
            ("output", 2_000, 8_000_000),
            ("records", 2, 0),
        ]
        row = (await connection.execute(select(usage_records))).mappings().first()
    assert row is not None
    assert (row["cost_nano"], row["charged_nano"], row["month"]) == (COST, COST, 202701)


async def test_shipping_twice_books_once(db: Database) -> None:
    await apply(db, document({"kind": "payg"}))
    await insert_records(db, [use(1)])
    await insert_records(db, [use(1), use(2)])

    assert await balances_of(db) == {"receivable": 2 * COST, "revenue": -2 * COST}


async def test_a_tenant_without_a_contract_owes_nothing_and_sees_the_price(db: Database) -> None:
    await apply(db, document())
    await insert_records(db, [use(1)])

    assert await balances_of(db) == {}
    async with db.read() as connection:
        assert await connection.scalar(select(usage_records.c.cost_nano)) == COST
        assert await connection.scalar(select(func.sum(usage_lines.c.nano))) == 0


async def test_prepaid_draws_promotions_then_what_was_paid_and_the_rest_is_owed(
    db: Database,
) -> None:
    await apply(db, document({"kind": "prepaid"}))
    async with db.begin() as connection:
        for kind, nano in (("paid", COST), ("promotional", COST // 2)):
            await credit.add_credit(connection, _credit(kind, nano), NOW_MS)
    await insert_records(db, [use(1), use(2)])

    assert await balances_of(db) == {
        "cash": COST,
        "promotional": COST // 2,
        "receivable": COST // 2,
        "revenue": -2 * COST,
    }
    async with db.read() as connection:
        assert await connection.scalar(select(func.sum(grants.c.left_nano))) == 0


async def test_a_commitment_counts_across_batches(db: Database) -> None:
    contract = {"kind": "commitment", "commitment": "0.0075", "overage": "1.5"}
    await apply(db, document(contract))
    await insert_records(db, [use(1)])
    await insert_records(db, [use(2)])

    owed = COST + COST // 2 + COST // 2 * 3 // 2
    assert await balances_of(db) == {"receivable": owed, "revenue": -owed}
    async with db.read() as connection:
        assert await connection.scalar(select(commitment_use.c.nano)) == 7_500_000
        overage = await connection.scalar(
            select(usage_lines.c.nano).where(usage_lines.c.meter == "overage")
        )
    assert overage == COST // 4


async def test_reserved_throughput_covers_what_was_admitted_on_it(db: Database) -> None:
    await apply(db, document({"kind": "payg"}))
    async with db.begin() as connection:
        term_id = await contracts.ask_for_term(connection, _term(), NOW_MS)
        await contracts.accept_term(connection, term_id, NOW_MS)
    await insert_records(db, [use(1, reserved=True)])
    await insert_records(db, [use(2, reserved=True), use(3)])

    assert await balances_of(db) == {"receivable": COST, "revenue": -COST}
    async with db.read() as connection:
        used = (await connection.execute(select(throughput_use))).mappings().all()
        rows = await connection.scalars(select(usage_records.c.covered_tokens))
        spent = await spent_micro(connection, Scope("tenant_id", 1), "USD", 0, NOW_MS * 2)
    assert [row["tokens"] for row in used] == [4_000]
    assert sorted(rows) == [0, 2_000, 2_000]
    assert spent == COST // 1_000, "budgets count what is paid by the token"


async def test_publishers_get_their_share_of_the_net_and_parts_make_the_whole(
    db: Database,
) -> None:
    shares = [{"publisher": "labs", "percent": "33.33"}, {"publisher": "host", "percent": "10"}]
    names = [{"name": "labs"}, {"name": "host"}]
    await apply(db, document({"kind": "payg"}, model={"shares": shares}, publishers=names))
    await insert_records(db, [use(1, prompt=7, completion=3)])

    found = await balances_of(db)
    assert found["receivable"] == 19_000
    assert found == {"receivable": 19_000, "publisher_payable": -8_233, "platform_fee": -10_767}
    async with db.read() as connection:
        rows = await connection.execute(
            select(publishers.c.name, account_sums.c.nano).join(
                publishers, account_sums.c.publisher_id == publishers.c.id
            )
        )
        assert dict(map(tuple, rows)) == {"labs": -6_333, "host": -1_900}


async def test_a_share_holds_from_its_day_and_a_late_record_is_shared_as_on_its_own(
    db: Database,
) -> None:
    names = [{"name": "labs"}]
    half = {"shares": [{"publisher": "labs", "percent": "50"}]}
    made = applier(db)  # its clock moves a millisecond each time it is read
    for each in (document({"kind": "payg"}, publishers=names), document(model=half)):
        await made.apply(parse(each, "file.yaml"), "file.yaml")
    await insert_records(db, [use(1), use(2, started_ms=NOW_MS)])

    assert (await balances_of(db))["publisher_payable"] == -COST // 2


async def test_attempts_cost_the_operator_failed_ones_too(db: Database) -> None:
    made = document({"kind": "payg"})
    for endpoint in made["pools"][0]["endpoints"]:
        endpoint["cost"] = {"input": "0.5", "output": "2"}
    await apply(db, made)
    failed = record(1)[1].attempts[0]
    answered = msgspec.structs.replace(failed, endpoint_id=2, completion_tokens=10)
    await insert_records(db, [use(1, attempts=(failed, answered))])

    spent = (5_000 + 6_000) + (5_000 + 20_000)
    found = await balances_of(db)
    assert (found["operator_cost"], found["cost_accrued"]) == (spent, -spent)


async def test_a_price_for_one_tenant_stands_beside_everybodys(db: Database) -> None:
    made = document({"kind": "payg"})
    made["models"][0]["price"]["tiers"] = {"batch": "0.5"}
    made["tenants"][0]["prices"] = [{"model": "llama", "input": "0.5", "output": "2"}]
    await apply(db, made)
    async with db.read() as connection:
        found = await prices_in_force(connection, 1, 2**62)
    assert {
        where: (price.nano["input"], price.multiplier_ppm) for where, price in found.items()
    } == {
        (0, "default"): (1_000_000_000, 1_000_000),
        (0, "batch"): (1_000_000_000, 500_000),
        (1, "default"): (500_000_000, 1_000_000),
        (1, "batch"): (500_000_000, 500_000),
    }


@pytest.mark.parametrize("seeded", ["lost", "doubled", "altered"])
async def test_the_check_of_the_sums_sees_a_posting_that_is_not_as_it_was(
    db: Database, seeded: str
) -> None:
    await apply(db, document({"kind": "payg"}))
    await insert_records(db, [use(1)])
    async with db.begin() as connection:
        row = dict((await connection.execute(select(postings).limit(1))).mappings().one())
        if seeded == "lost":
            await connection.execute(postings.delete().where(postings.c.id == row["id"]))
        elif seeded == "doubled":
            again = row | {"entry_key": "use:again"}
            del again["id"]
            await connection.execute(postings.insert().values(again))
        else:
            await connection.execute(
                postings.update().where(postings.c.id == row["id"]).values(nano=row["nano"] + 1)
            )
        assert len(await drifts(connection)) == 1


async def test_a_tenant_may_spend_what_is_granted_less_what_is_owed(db: Database) -> None:
    await apply(db, document({"kind": "prepaid"}))
    async with db.begin() as connection:
        tenant_id = await accounts.live_id(connection, tenants, name="acme")
        await credit.add_credit(connection, _credit("paid", 3 * COST), NOW_MS)
    await insert_records(db, [use(number) for number in range(2)])
    async with db.read() as connection:
        (found,) = (await credit.balances(connection, [tenant_id], NOW_MS)).values()
    assert (found.available_nano, found.limited) == (COST, True)
    await insert_records(db, [use(number) for number in range(2, 5)])
    async with db.read() as connection:
        (found,) = (await credit.balances(connection, [tenant_id], NOW_MS)).values()
    assert (found.available_nano, found.owed_nano) == (-2 * COST, 2 * COST)


async def test_one_that_asks_meanwhile_waits_for_the_first_answer_to_its_key(db: Database) -> None:
    await apply(db, document({"kind": "prepaid"}))

    async def ask() -> Any:
        async with db.begin() as connection:
            before = await credit.answered_before(connection, "k1", b"five")
            if before is not None:
                return before
            await asyncio.sleep(0.05)
            await credit.add_credit(connection, _credit("paid", COST), NOW_MS)
            await credit.remember_answer(connection, "k1", b"five", {"amount": 5}, NOW_MS)
            return {"amount": 5}

    assert await asyncio.gather(*(ask() for _ in range(3))) == 3 * [{"amount": 5}]


def _credit(kind: str, nano: int) -> credit.Credit:
    return credit.Credit(
        tenant_id=1, kind=kind, amount_nano=nano, currency="USD", reference=f"ref-{kind}"
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
        until_ms=START_MS + 1_000 * HOUR_MS,
    )
