"""Whether the books say what the records say: postings, sums, grants and statements, to the nano.

Every amount is worked out again here, from a record's counts and the figures that were declared, with
fractions and without the product's own arithmetic; then each account that repeats it is compared.
``tests/loadtests/test_auditor.py`` shows that it finds a lost, a doubled and an altered posting. Not
here: whether the records are true (``loadtests.checker``).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import msgspec
from sqlalchemy import select

from gateway.store import statements
from gateway.store.database import Database
from gateway.store.schema import account_sums, grants, postings, usage_records
from quotas.months import bounds_ms
from quotas.statement import Statement

MILLION = 10**6
NANO_PER_MICRO = 1_000
Row = Mapping[str, Any]
#: Who pays: what a tenant owes, has paid ahead, or was given.
PAYS = ("customer_prepaid", "receivable", "promotional")
EARNS = ("revenue", "platform_fee", "publisher_payable")


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One model's price, the publisher's part of it, and every endpoint's cost; nano-units per million
    tokens. ``percent``: the publisher's, of what was paid; ``floor``: at least this.
    """

    input: int
    cached_input: int
    output: int
    percent: int
    floor: int
    cost_input: int
    cost_output: int

    @classmethod
    def of(cls, model: Mapping[str, Any], endpoint: Mapping[str, Any]) -> "Figures":
        """As a declared file has them, decimals in quotes."""
        (share,), price, cost = model["shares"], model["price"], endpoint["cost"]
        return cls(
            input=_declared(price["input"]),
            cached_input=_declared(price["cached_input"]),
            output=_declared(price["output"]),
            percent=int(share["percent"]),
            floor=_declared(share["floor"]),
            cost_input=_declared(cost["input"]),
            cost_output=_declared(cost["output"]),
        )


class Books(msgspec.Struct, kw_only=True):
    """Rows as the database has them. ``tenants``, ``publishers``: name -> id."""

    tenants: dict[str, int]
    publishers: dict[str, int]
    records: list[Row]
    postings: list[Row]
    sums: list[Row]
    grants: list[Row]
    statements: list[Statement] = []


class Sale(msgspec.Struct, frozen=True, kw_only=True):
    """What one record comes to, in nano-units."""

    charged: int
    cost: int
    tokens: int


async def read_books(db: Database, parties: Mapping[str, Mapping[str, int]]) -> Books:
    """``parties``: "tenant" and "publisher" -> name -> id."""

    async def rows(table: Any, *without: str) -> list[Row]:
        wanted = [column for column in table.c if column.name not in without]
        return [dict(row) for row in (await connection.execute(select(*wanted))).mappings()]

    async with db.read() as connection:
        return Books(
            tenants=dict(parties["tenant"]),
            publishers=dict(parties["publisher"]),
            records=await rows(usage_records, "payload", "payload_hash"),
            postings=await rows(postings),
            sums=await rows(account_sums),
            grants=await rows(grants),
        )


async def close_months(db: Database, books: Books) -> None:
    """Close every month that has a posting, of every party, as on the month's last day; raises what the
    product raises where it finds itself that something does not add up.
    """
    for month in sorted({row["month"] for row in books.postings}):
        for kind, names in (("tenant", books.tenants), ("publisher", books.publishers)):
            for name in names:
                async with db.begin() as connection:
                    books.statements += await statements.close(
                        connection, kind, name, month, bounds_ms(month)[1], _unsigned
                    )


def audit(books: Books, figures: Figures) -> list[str]:
    """Sentences, one a fault; empty when the books are in order."""
    sales = {record["request_id"]: sale_of(record, figures) for record in books.records}
    return [
        *_entries(books.postings),
        *_charges(books, sales, figures),
        *_kept_sums(books),
        *_drawn_grants(books),
        *_costs(books, sales),
        *_statements(books, sales, figures),
    ]


def sale_of(record: Row, figures: Figures) -> Sale:
    """A record's price, line by line, and what its attempts cost."""
    prompt, output = record["prompt_tokens"], record["completion_tokens"]
    cached = min(record["cached_tokens"], prompt)
    lines = (
        (prompt - cached, figures.input),
        (cached, figures.cached_input),
        (output, figures.output),
    )
    attempts = msgspec.json.decode(record["attempt_log"])
    cost = sum(
        _nano(
            each["prompt_tokens"] * max(each["choices"], 1) * figures.cost_input
            + each["completion_tokens"] * figures.cost_output
        )
        for each in attempts
    )
    charged = sum(_nano(units * price) for units, price in lines)
    return Sale(charged=charged, cost=cost, tokens=prompt + output)


def purse_fault(name: str, level_micro: int | None, available_nano: int, records: int) -> str:
    """What is wrong with a balance in the store, empty when nothing is: it may lack a micro-unit a
    record since it was last counted, and may never have more than SQL.
    """
    if level_micro is None:
        return f"{name}: the store has no balance, or money is held though nothing runs"
    drift = available_nano // NANO_PER_MICRO - level_micro
    if 0 <= drift <= records:
        return ""
    return (
        f"{name}: the store has {level_micro} micro, SQL {available_nano} nano, {records} records"
    )


def available_nano(books: Books, tenant_id: int) -> int:
    """What is left of a tenant's grants, less what it owes."""
    left = sum(grant["left_nano"] for grant in books.grants if grant["tenant_id"] == tenant_id)
    return left - _account(books.postings, tenant_id, "receivable")


# -- one check each --------------------------------------------------------------------------


def _entries(rows: Iterable[Row]) -> Iterator[str]:
    """Each entry's postings sum to zero, and none is there twice."""
    off = Counter[tuple[str, str]]()
    lines = Counter[tuple[str, int]]()
    for row in rows:
        off[row["entry_key"], row["currency"]] += row["nano"]
        lines[row["entry_key"], row["line"]] += 1
    yield from (f"{key}: off by {nano} {currency}" for (key, currency), nano in off.items() if nano)
    yield from (f"{key}: posted {times} times" for (key, _), times in lines.items() if times > 1)


def _charges(books: Books, sales: Mapping[str, Sale], figures: Figures) -> Iterator[str]:
    """Each record's row and postings are its sale, and its publisher's part is its share."""
    posted: dict[str, list[Row]] = defaultdict(list)
    for row in books.postings:
        if row["kind"] == "use":
            posted[row["entry_key"].removeprefix("use:")].append(row)
    for record in books.records:
        request_id, sale = record["request_id"], sales[record["request_id"]]
        if record["charged_nano"] != sale.charged:
            yield f"{request_id}: charged {record['charged_nano']}, comes to {sale.charged}"
        mine = posted.pop(request_id, [])
        paid = sum(row["nano"] for row in mine if row["account"] in PAYS)
        if paid != sale.charged:
            yield f"{request_id}: {paid} posted, comes to {sale.charged}"
        net = paid - sum(row["nano"] for row in mine if row["account"] == "promotional")
        earned = -sum(row["nano"] for row in mine if row["account"] == "publisher_payable")
        if mine and earned != _share(net, sale.tokens, figures):
            yield f"{request_id}: the publisher's part of {net} is {earned}"
        if any(row["account"] not in (*PAYS, *EARNS) for row in mine):
            yield f"{request_id}: posted to {[row['account'] for row in mine]}"
        if any(row["tenant_id"] != record["tenant_id"] for row in mine):
            yield f"{request_id}: posted to another tenant"
    yield from (f"{request_id}: posted, and there is no record" for request_id in posted)


def _kept_sums(books: Books) -> Iterator[str]:
    """The sums that are kept are those of the postings."""
    names = ("tenant_id", "publisher_id", "currency", "account", "month")
    found = Counter[tuple[Any, ...]]()
    for row in books.postings:
        found[tuple(row[name] for name in names)] += row["nano"]
    for row in books.sums:
        found[tuple(row[name] for name in names)] -= row["nano"]
    yield from (f"sums: {key} is off by {nano}" for key, nano in found.items() if nano)


def _drawn_grants(books: Books) -> Iterator[str]:
    """What is left of paid grants is the account's balance; what is gone of the others was posted."""
    for name, tenant_id in books.tenants.items():
        mine = [grant for grant in books.grants if grant["tenant_id"] == tenant_id]
        left = sum(grant["left_nano"] for grant in mine if grant["kind"] == "paid")
        prepaid = -_account(books.postings, tenant_id, "customer_prepaid")
        if left != prepaid:
            yield f"{name}: {left} is left of its credits, {prepaid} on its account"
        gone = sum(
            grant["amount_nano"] - grant["left_nano"]
            for grant in mine
            if grant["kind"] == "promotional"
        )
        given = _account(books.postings, tenant_id, "promotional")
        if gone != given:
            yield f"{name}: {gone} is gone of its promotions, {given} on the account"


def _costs(books: Books, sales: Mapping[str, Sale]) -> Iterator[str]:
    """Every attempt's cost, failed ones among them, is on the record and on the account."""
    by_tenant = Counter[int]()
    for record in books.records:
        sale = sales[record["request_id"]]
        by_tenant[record["tenant_id"]] += sale.cost
        if record["operator_cost_nano"] != sale.cost:
            yield f"{record['request_id']}: costs {record['operator_cost_nano']}, not {sale.cost}"
    for name, tenant_id in books.tenants.items():
        booked = _account(books.postings, tenant_id, "operator_cost")
        if booked != by_tenant[tenant_id]:
            yield f"{name}: engines cost {by_tenant[tenant_id]}, {booked} on the account"


def _statements(books: Books, sales: Mapping[str, Sale], figures: Figures) -> Iterator[str]:
    """A party's statements together are its sales, record for record."""
    if not books.statements:
        return
    mine: dict[str, list[Row]] = defaultdict(list)
    names = {tenant_id: name for name, tenant_id in books.tenants.items()}
    for record in books.records:
        mine[names[record["tenant_id"]]].append(record)
    for name in books.tenants:
        found = [each for each in books.statements if (each.kind, each.party) == ("tenant", name)]
        charged = sum(sales[record["request_id"]].charged for record in mine[name])
        said = (sum(each.records for each in found), sum(each.charged_nano for each in found))
        if said != (len(mine[name]), charged):
            yield f"{name}: {len(mine[name])} records come to {charged}, its statements say {said}"
        yield from _meters(name, found, mine[name])
    promoted = Counter[str]()
    for row in books.postings:
        if row["kind"] == "use" and row["account"] == "promotional":
            promoted[row["entry_key"].removeprefix("use:")] += row["nano"]
    shares = sum(
        _share(sale.charged - promoted[request_id], sale.tokens, figures)
        for request_id, sale in sales.items()
        if sale.charged
    )
    earned = sum(each.charged_nano for each in books.statements if each.kind == "publisher")
    if earned != shares:
        yield f"publishers' statements say {earned}, their parts come to {shares}"


def _meters(name: str, found: Sequence[Statement], records: Iterable[Row]) -> Iterator[str]:
    """Units of each meter on statements are those of the records."""
    units = Counter[str]()
    for record in records:
        cached = min(record["cached_tokens"], record["prompt_tokens"])
        units["input"] += record["prompt_tokens"] - cached
        units["cached_input"] += cached
        units["output"] += record["completion_tokens"]
    for statement in found:
        for line in statement.lines:
            units[line.meter] -= line.units
    yield from (f"{name}: {meter} is off by {off} units" for meter, off in units.items() if off)


# -- arithmetic ------------------------------------------------------------------------------


def _declared(text: str) -> int:
    return int(Fraction(text) * 10**9)


def _nano(millionths: int) -> int:
    """Rounded half to even, as ``round`` does of a fraction."""
    return round(Fraction(millionths, MILLION))


def _share(net: int, tokens: int, figures: Figures) -> int:
    """Of two parts the larger remainder is rounded up, and the publisher's where they are equal."""
    part = Fraction(net * figures.percent, 100)
    return max(int(part + Fraction(1, 2)), _nano(tokens * figures.floor))


def _account(rows: Iterable[Row], tenant_id: int, account: str) -> int:
    return sum(
        row["nano"] for row in rows if (row["tenant_id"], row["account"]) == (tenant_id, account)
    )


def _unsigned(_document: bytes) -> tuple[bytes, bytes]:
    return b"", b""
