"""Money over the admin API: credits once, contracts, throughput, corrections, statements, margins."""

import time
from typing import Any

import pytest
from sqlalchemy import func, select

from gateway.signing import verify
from gateway.store.database import Database
from gateway.store.ledger import insert_records
from gateway.store.schema import grants, postings
from tests.gateway.control.test_app import Desk, desk
from tests.gateway.control.test_payments import event, signed
from tests.gateway.store.test_books import COST, document, use
from tests.support.applying import apply
from tests.support.databases import db

__all__ = ["db", "desk"]
CREDITS = "tenants/acme/credits"
NOW_MS = int(time.time()) * 1000


@pytest.fixture
def database_url() -> None:
    """SQLite: the statements themselves are proven on both in tests/gateway/store."""


async def get(desk: Desk, path: str, status: int = 200) -> Any:
    response = await desk.http.get(f"/admin/v1/{path}")
    assert response.status_code == status, response.text
    return response.json()


async def sold(db: Database, *records: Any, **model: Any) -> None:
    await apply(db, document(model.pop("contract", {"kind": "payg"}), model=model))
    await insert_records(db, list(records))


async def test_a_credit_is_given_shown_and_taken_back(desk: Desk, db: Database) -> None:
    await apply(db, document({"kind": "prepaid"}), NOW_MS - 1_000)
    made = await desk.post(CREDITS, {"amount": "25.00", "reference": "wire-1"}, 201)
    assert made["balance"]["available"] == "25.00"
    await desk.post(CREDITS, {"amount": "1", "reference": "gift", "kind": "promotional"}, 201)

    shown = await get(desk, CREDITS)
    assert (shown["balance"]["available"], shown["balance"]["credit_line"]) == ("26.00", "0.00")
    assert [row["kind"] for row in shown["credits"]] == ["paid", "promotional"]
    back = await desk.post(f"{CREDITS}/reverse", {"reference": "wire-1"}, 200)
    assert (back["unused"], back["balance"]["available"]) == ("25.00", "1.00")
    await desk.post(f"{CREDITS}/reverse", {"reference": "wire-1"}, 409)
    await desk.post(f"{CREDITS}/reverse", {"reference": "wire-9"}, 404)
    assert desk.credited == [
        ("topup:1:wire-1", 25 * 10**9),
        ("topup:1:gift", 10**9),
        ("topup_reversal:1:wire-1", -25 * 10**9),
    ]


async def test_the_same_idempotency_key_is_credited_once_and_answered_alike(
    desk: Desk, db: Database
) -> None:
    await apply(db, document({"kind": "prepaid"}))
    body = {"amount": "5", "reference": "wire-1"}
    headers = {"idempotency-key": "k1"}
    answers = [
        (await desk.http.post(f"/admin/v1/{CREDITS}", json=body, headers=headers)).json()
        for _ in range(3)
    ]
    other = await desk.http.post(
        f"/admin/v1/{CREDITS}", json=body | {"amount": "6"}, headers=headers
    )

    assert answers[0] == answers[1] == answers[2]
    assert other.status_code == 409
    async with db.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(grants)) == 1


async def test_the_same_reference_without_a_key_is_refused(desk: Desk, db: Database) -> None:
    await apply(db, document({"kind": "prepaid"}))
    await desk.post(CREDITS, {"amount": "5", "reference": "wire-1"}, 201)
    refused = await desk.post(CREDITS, {"amount": "5", "reference": "wire-1"}, 409)
    assert "wire-1" in refused["detail"]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (CREDITS, {"amount": "0", "reference": "r"}, 400, "more than 0"),
        (CREDITS, {"amount": 1.5, "reference": "r"}, 400, "in quotes"),
        (CREDITS, {"amount": "-1", "reference": "r"}, 400, "not negative"),
        (CREDITS, {"amount": "1"}, 400, "reference"),
        (CREDITS, {"amount": "1", "reference": "a b"}, 400, "reference"),
        (CREDITS, {"amount": "1", "reference": "r", "expires": "2020-01-01"}, 400, "to come"),
        ("tenants/nobody/credits", {"amount": "1", "reference": "r"}, 404, "no tenant nobody"),
        ("statements", {"party": "acme", "month": "2026"}, 400, "expected a month"),
        ("statements", {"party": "acme", "month": "2999-01"}, 409, "not over"),
        ("statements", {"party": "acme", "month": "2026-01", "kind": "x"}, 400, "kind"),
        ("records/00/reverse", {}, 404, "no record 00"),
        ("records/00/reprice", {"price_version": 0}, 400, "price_version"),
        ("throughput/7/accept", {}, 404, "no throughput term 7"),
        ("publishers/labs/payouts", {"amount": "1", "reference": "r"}, 404, "no publisher labs"),
    ],
)
async def test_bad_money_gets_one_clear_sentence(
    desk: Desk, db: Database, path: str, body: Any, status: int, said: str
) -> None:
    await apply(db, document({"kind": "payg"}))
    assert said in (await desk.post(path, body, status))["detail"]


async def test_a_payment_that_stripe_tells_twice_is_credited_once(desk: Desk, db: Database) -> None:
    await apply(db, document({"kind": "prepaid"}))
    body = event()
    headers = {"stripe-signature": signed(body, at_s=int(time.time()))}

    async def tell(content: bytes, headers: dict[str, str]) -> Any:
        anonymous = {"authorization": ""}
        return await desk.http.post(
            "/webhooks/stripe", content=content, headers=headers | anonymous
        )

    assert (await tell(body, headers)).json() == {"event": "evt_1", "done": "credited"}
    assert (await tell(body, headers)).json()["done"] == "done before"
    assert (await tell(body + b" ", headers)).status_code == 400
    refund = event("charge.refunded", payment_intent="pi_1", refunded=True)
    headers = {"stripe-signature": signed(refund, at_s=int(time.time()))}
    assert (await tell(refund, headers)).json()["done"] == "reversed"
    assert (await get(desk, CREDITS))["balance"]["available"] == "0.00"


async def test_a_record_is_charged_anew_and_then_not_at_all(desk: Desk, db: Database) -> None:
    one = use(1)
    await sold(db, one)
    await apply(db, document(model={"price": {"input": "2", "output": "8"}}))
    request_id = one[1].request_id

    done = await desk.post(f"records/{request_id}/reprice", {"price_version": 2}, 200)
    assert done["reverses"] == f"use:{request_id}"
    undone = await desk.post(f"records/{request_id}/reverse", {}, 200)
    assert undone["reverses"] == f"reprice:{request_id}:1"
    assert dict(desk.credited) == {
        f"reversal:{request_id}:1": COST,
        f"reprice:{request_id}:1": -2 * COST,
        f"reversal:{request_id}:2": 2 * COST,
    }
    async with db.read() as connection:
        owed = await connection.scalar(
            select(func.sum(postings.c.nano)).where(postings.c.account == "receivable")
        )
    assert owed == 0


async def test_a_month_is_closed_and_its_file_checked_by_anybody(desk: Desk, db: Database) -> None:
    await sold(db, use(1, started_ms=NOW_MS - 40 * 86_400_000))
    month = time.strftime("%Y-%m", time.gmtime(NOW_MS // 1000 - 40 * 86_400))
    # The contract began after the record: it was free, and is listed with its price taken off.
    (made,) = (await desk.post("statements", {"party": "acme", "month": month}, 201))["data"]
    assert (made["charged_nano"], made["records"]) == (0, 1)

    (row,) = (await get(desk, "statements"))["data"]
    file = await desk.http.get(f"/admin/v1/statements/{row['number']}")
    statement, _ = verify(file.content)
    assert {line.meter: line.amount_nano for line in statement.lines} == {
        "input": 1_000_000,
        "output": 4_000_000,
        "free_tier": -COST,
    }
    await get(desk, "statements/99", 404)


async def test_what_is_left_is_sales_less_publishers_less_engines(desk: Desk, db: Database) -> None:
    made = document({"kind": "payg"}, publishers=[{"name": "labs"}],
                    model={"shares": [{"publisher": "labs", "percent": "70"}]})  # fmt: skip
    made["pools"][0]["endpoints"][0]["cost"] = {"input": "10", "output": "20"}
    await apply(db, made)
    await insert_records(db, [use(1, started_ms=1_800_000_000_100)])

    (row,) = (await get(desk, "margin?month=2027-01"))["data"]
    assert (row["sold"], row["publishers"], row["net"]) == ("0.005", "0.0035", "0.0015")
    assert row["token_cost"] == "0.00016"
    assert row["margin"] == "0.00134"


async def test_a_publisher_is_paid_what_is_payable_and_no_more(desk: Desk, db: Database) -> None:
    await apply(db, document({"kind": "payg"}, publishers=[{"name": "labs"}],
                             model={"shares": [{"publisher": "labs", "percent": "100"}]}))  # fmt: skip
    await insert_records(db, [use(1)])
    path = "publishers/labs/payouts"
    refused = await desk.post(path, {"amount": "0.006", "reference": "p1"}, 409)
    assert "0.005 USD is payable" in refused["detail"]
    paid = await desk.post(path, {"amount": "0.004", "reference": "p1"}, 201)
    assert paid["payable"] == "0.001"
    await desk.post(path, {"amount": "0.001", "reference": "p1"}, 409)
