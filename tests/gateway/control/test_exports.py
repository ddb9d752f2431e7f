"""Exports hold every row once, go on from any cursor, and FOCUS's sums are the statement's."""

import csv
import io
import json
import tracemalloc
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.control import exports
from gateway.control.focus import COLUMNS
from gateway.store.corrections import reprice_record, reverse_record
from gateway.store.database import Database, open_database
from gateway.store.ledger import insert_records
from gateway.store.statements import close
from loadtests.exports import stream
from loadtests.ledger_rows import fill
from tests.gateway.control.test_app import Desk
from tests.support.applying import FULL, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import START_MS, record

__all__ = ["database_url", "db", "postgres"]
MONTH_MS = 31 * 86_400_000
PAYG = FULL | {
    "models": [FULL["models"][0] | {"price": {"currency": "USD", "input": "0.123456789",
                                              "cached_input": "0.05", "output": "0.4",
                                              "request": "0.001"}}],
    "tenants": [FULL["tenants"][0] | {"contract": {"kind": "commitment", "commitment": "0.01",
                                                   "overage": "1.5"}}],
}  # fmt: skip


@pytest.fixture
async def desk(db: Database) -> AsyncIterator[Desk]:
    await apply(db, PAYG, START_MS - MONTH_MS // 3)
    made = Desk(db)
    yield made
    await made.http.aclose()


async def fetched(desk: Desk, **asked: Any) -> httpx.Response:
    answer = await desk.http.get("/admin/v1/export", params=asked)
    assert answer.status_code == 200, answer.text
    return answer


async def rows_of(desk: Desk, **asked: Any) -> list[dict[str, Any]]:
    text = (await fetched(desk, format="jsonl", **asked)).text
    return [json.loads(line) for line in text.splitlines()]


def used(number: int, **fields: Any) -> Any:
    usage = {"prompt_tokens": 333 + number, "cached_tokens": 33, "completion_tokens": 7}
    return record(number, usage=usage, **fields)


@pytest.mark.parametrize("data", ["records", "postings", "focus"])
async def test_pages_and_the_stream_hold_the_same_rows_and_any_cursor_goes_on(
    desk: Desk, data: str
) -> None:
    await insert_records(desk.db, [used(n) for n in range(1, 12)])
    async with desk.db.begin() as connection:
        await reverse_record(connection, f"{3:032x}", START_MS + 1)
        await reverse_record(connection, f"{4:032x}", START_MS + 1)
    whole = await rows_of(desk, data=data)
    name = "x_Cursor" if data == "focus" else "cursor"
    for at in range(0, len(whole), 3):  # cut anywhere, and gone on with
        cursor = whole[at][name]
        rest = await rows_of(desk, data=data, cursor=cursor)
        last_of_it = max(n for n, row in enumerate(whole) if row[name] == cursor)
        assert rest == whole[last_of_it + 1 :]
    pages: list[dict[str, Any]] = []
    cursor, more = "0", True
    while more:
        answer = await fetched(desk, data=data, format="jsonl", cursor=cursor, limit=2)
        pages += [json.loads(line) for line in answer.text.splitlines()]
        cursor, more = answer.headers["x-tf-cursor"], answer.headers["x-tf-more"] == "1"
    assert pages == whole
    await insert_records(desk.db, [used(99)])
    later = await rows_of(desk, data=data, cursor=cursor)
    assert later
    assert whole + later != whole
    everything = await rows_of(desk, data=data)
    assert len(everything) == len(whole) + len(later)


async def test_csv_says_the_same_as_json_lines(desk: Desk) -> None:
    await insert_records(desk.db, [used(n) for n in range(3)])
    for data in ("records", "postings", "focus"):
        text = (await fetched(desk, data=data)).text
        read = list(csv.DictReader(io.StringIO(text)))
        lines = await rows_of(desk, data=data)
        assert read == [
            {key: "" if value is None else str(value) for key, value in row.items()}
            for row in lines
        ]
        cut = (await fetched(desk, data=data, cursor="0")).text
        assert text.partition("\r\n")[2] == cut


async def test_focus_multiplies_out_and_sums_to_the_statement(desk: Desk) -> None:
    """Beyond a commitment, with a reversal, a new price and a record that came late."""
    now_ms = START_MS + 2 * MONTH_MS
    await insert_records(desk.db, [used(n) for n in range(20)])
    dearer = PAYG["models"][0] | {"price": {"currency": "USD", "input": "9", "output": "9"}}
    await apply(
        desk.db, {"pools": PAYG["pools"], "models": [dearer]}, START_MS - MONTH_MS // 3 + 9_000
    )
    async with desk.db.begin() as connection:
        await reverse_record(connection, f"{3:032x}", START_MS + 9)
        await reprice_record(connection, f"{4:032x}", 2, START_MS + 9)
        await close(connection, "tenant", "acme", 202701, now_ms, lambda _: (b"s", b"k"))
    await insert_records(desk.db, [used(50)])
    async with desk.db.begin() as connection:
        await close(connection, "tenant", "acme", 202702, now_ms, lambda _: (b"s", b"k"))

    for number, month in ((1, "2027-01"), (2, "2027-02")):
        said = (await desk.http.get(f"/admin/v1/statements/{number}")).json()["statement"]
        wanted = Decimal(said["charged_nano"]) / 10**9
        rows = await rows_of(desk, data="focus", tenant="acme", month=month)
        assert sum(Decimal(row["BilledCost"]) for row in rows) == wanted
        assert {row["InvoiceId"] for row in rows} == {str(number)}
        check_focus(rows)
        lines = (
            await desk.http.get(f"/admin/v1/statements/{number}", params={"format": "focus-jsonl"})
        ).text
        of_statement = [json.loads(line) for line in lines.splitlines()]
        assert sum(Decimal(row["BilledCost"]) for row in of_statement) == wanted
        check_focus(of_statement)


def check_focus(rows: list[dict[str, Any]]) -> None:
    """What FOCUS 1.2 demands of these columns, as far as one row can tell."""
    for row in rows:
        assert set(COLUMNS) <= set(row)
        for column in (
            "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency",
            "BillingPeriodStart", "BillingPeriodEnd", "ChargeCategory", "ChargeDescription",
            "ChargePeriodStart", "ChargePeriodEnd", "ContractedCost", "EffectiveCost",
            "InvoiceIssuerName", "ListCost", "ProviderName", "PublisherName", "ServiceCategory",
            "ServiceName", "ServiceSubcategory",
        ):  # fmt: skip
            assert row[column] is not None, column
        assert row["ChargeCategory"] in ("Usage", "Purchase", "Credit", "Adjustment", "Tax")
        if row["ChargeCategory"] in ("Usage", "Purchase") and row["ChargeClass"] is None:
            assert Decimal(row["PricingQuantity"]) >= 0
            assert row["PricingUnit"]
            assert row["SkuPriceId"]
            if row["ListUnitPrice"] is not None:
                product = Decimal(row["PricingQuantity"]) * Decimal(row["ListUnitPrice"])
                assert product == Decimal(row["ListCost"])


async def test_an_export_is_held_a_page_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form of loadtests/exports.py: memory does not follow the number of rows."""
    monkeypatch.setattr(exports, "PAGE", 100)
    db = open_database(None, tmp_path)
    await fill(db, 4_000, record(1)[0])
    for query in ("data=records", "data=focus"):
        peaks = []
        for cursor in (3_900, 3_000, 0):  # the first for what is made once
            tracemalloc.start()
            lines, size, largest = await stream(db, f"{query}&cursor={cursor}")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert lines >= 4_000 - cursor
        assert largest < size / 30
        assert peaks[2] < 1.5 * peaks[1], peaks
    await db.close()


async def test_a_seeded_wrong_row_does_not_pass(desk: Desk) -> None:
    await insert_records(desk.db, [used(1)])
    rows = await rows_of(desk, data="focus")
    check_focus(rows)
    for column, value in (("ListCost", "0.1"), ("ProviderName", None), ("ChargeCategory", "Use")):
        with pytest.raises(AssertionError):
            check_focus([rows[0] | {column: value}])


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("data=invoices", 400), ("format=xml", 400), ("cursor=x", 400), ("cursor=1.2.3", 400),
        ("limit=0", 400), ("limit=10001", 400), ("month=2026-13", 400), ("tenant=nobody", 404),
        ("mnth=2026-11", 400), ("cursor=%D9%A1", 400),
    ],
)  # fmt: skip
async def test_a_wrong_question_is_a_problem(desk: Desk, query: str, status: int) -> None:
    answer = await desk.http.get(f"/admin/v1/export?{query}")
    assert answer.status_code == status, answer.text
    wrong = await desk.http.get("/admin/v1/statements/7?format=focus-csv")
    assert wrong.status_code == 404
