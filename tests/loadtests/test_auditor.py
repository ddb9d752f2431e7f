"""The auditor of loadtests/faults.py finds what is seeded, and nothing where nothing is wrong."""

import asyncio
import time

import msgspec
import pytest

from gateway.store import credit
from gateway.store.database import open_database
from gateway.store.ledger import insert_records
from loadtests.auditor import (
    Books,
    Figures,
    audit,
    available_nano,
    close_months,
    purse_fault,
    read_books,
)
from loadtests.site import ENDPOINT_COST, PRICED, TENANTS
from tests.support.applying import apply
from tests.support.records import record

PARTIES = {
    "tenant": {name: number for number, name in enumerate(TENANTS, 1)},
    "publisher": {"labs": 1},
}
ENDPOINT = {"url": "http://10.0.0.5:8000", "cost": ENDPOINT_COST}
FIGURES = Figures.of(PRICED, ENDPOINT)
#: Engines' costs are booked when they are, so records are of now as well.
NOW_MS = time.time_ns() // 1_000_000
KEYS = [{"name": "p", "keys": [{"name": "k"}]}]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Twelve records of every tenant, charged, and the month closed; as MessagePack, to be broken."""

    async def made():
        db = open_database(None, tmp_path_factory.mktemp("auditor"))
        await db.migrate()
        document = {
            "pools": [{"name": "pool", "endpoints": [ENDPOINT]}],
            "publishers": [{"name": "labs"}],
            "models": [{"name": "llama", "pool": "pool", **PRICED}],
            "tenants": [
                {"name": name, "projects": KEYS, "contract": contract}
                for name, contract in TENANTS.items()
            ],
        }
        await apply(db, document, NOW_MS)
        given = {"tenant_id": PARTIES["tenant"]["ahead"], "currency": "USD"}
        async with db.begin() as connection:
            for kind, nano in (("promotional", 5_000), ("paid", 40_000)):
                gift = credit.Credit(kind=kind, amount_nano=nano, reference=kind, **given)
                await credit.add_credit(connection, gift, NOW_MS)
        await insert_records(db, [_use(number) for number in range(36)])
        books = await read_books(db, PARTIES)
        await close_months(db, books)
        books = msgspec.structs.replace(await read_books(db, PARTIES), statements=books.statements)
        await db.close()
        return books

    return msgspec.msgpack.encode(asyncio.run(made()))


def _use(number):
    usage = {
        "prompt_tokens": 7 * number, "cached_tokens": number, "completion_tokens": 3 * number % 17,
    }  # fmt: skip
    return record(number, usage=usage, tenant_id=number % 3 + 1, started_ms=NOW_MS + 1 + number)


@pytest.fixture
def books(kept):
    return msgspec.msgpack.decode(kept, type=Books)


def test_books_in_order_have_no_fault(books):
    assert audit(books, FIGURES) == []
    assert {row["account"] for row in books.postings} >= {
        "customer_prepaid", "promotional", "receivable", "publisher_payable", "platform_fee",
        "operator_cost",
    }  # fmt: skip
    assert {(each.kind, each.party) for each in books.statements} == {
        *(("tenant", name) for name in TENANTS),
        ("publisher", "labs"),
    }


@pytest.mark.parametrize("index", range(0, 60, 7))
@pytest.mark.parametrize("seed", ["lost", "doubled", "altered"])
def test_any_posting_that_is_lost_doubled_or_altered_is_found(books, seed, index):
    row = books.postings[index]
    if seed == "lost":
        del books.postings[index]
    elif seed == "doubled":
        books.postings.append(row)
    else:
        books.postings[index] = row | {"nano": row["nano"] + 1}

    assert audit(books, FIGURES)


@pytest.mark.parametrize("key", [f"use:{11:032x}", f"use:{30:032x}"])
def test_a_whole_entry_that_is_lost_or_of_nobody_is_found(books, key):
    whole = [row for row in books.postings if row["entry_key"] == key]
    assert whole
    books.postings = [row for row in books.postings if row["entry_key"] != key]
    lost = audit(books, FIGURES)
    books.postings += whole + [row | {"entry_key": "use:nobody"} for row in whole]

    assert any(key.removeprefix("use:") in each for each in lost)
    assert any("there is no record" in each for each in audit(books, FIGURES))


@pytest.mark.parametrize("field", ["charged_nano", "operator_cost_nano", "completion_tokens"])
def test_a_record_that_is_off_by_one_is_found(books, field):
    books.records[20] = books.records[20] | {field: books.records[20][field] + 1}

    assert audit(books, FIGURES)


def test_a_sum_a_grant_and_a_statement_that_are_off_are_found(books):
    books.sums[0] = books.sums[0] | {"nano": books.sums[0]["nano"] - 1}
    books.grants[1] = books.grants[1] | {"left_nano": books.grants[1]["left_nano"] + 1}
    books.statements[0] = msgspec.structs.replace(books.statements[0], charged_nano=1)
    found = audit(books, FIGURES)

    assert [each.partition(":")[0] for each in found] == ["sums", "ahead", "acme"]


def test_two_parts_that_are_swapped_sum_to_zero_and_are_found(books):
    at = next(n for n, row in enumerate(books.postings) if row["account"] == "publisher_payable")
    parts = books.postings[at : at + 2]
    books.postings[at] = parts[0] | {"nano": parts[1]["nano"]}
    books.postings[at + 1] = parts[1] | {"nano": parts[0]["nano"]}

    assert any("the publisher's part" in each for each in audit(books, FIGURES))


def test_a_purse_may_lack_a_micro_a_record_and_have_none_too_many(books):
    assert purse_fault("a", 9, 12_999, 3) == ""
    assert purse_fault("a", 9, 13_000, 3)
    assert purse_fault("a", 13, 12_999, 3)
    assert purse_fault("a", None, 12_999, 3)
    assert available_nano(books, PARTIES["tenant"]["after"]) < 0
