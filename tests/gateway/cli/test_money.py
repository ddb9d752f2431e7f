"""``credits``, ``statements`` and ``verify`` as they are typed, without a server."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from gateway.signing import Signer, fingerprint, signed_file
from gateway.store.database import open_database
from gateway.store.ledger import insert_records
from gateway.store.schema import contracts
from quotas.statement import canonical
from tests.gateway.cli.test_offline import Cli, applied, cli, file
from tests.quotas.test_statement import statement
from tests.support.records import record

__all__ = ["cli", "file"]


@pytest.fixture
def prepaid(cli: Cli, file: Path) -> Cli:
    file.write_text(
        file.read_text().replace("- name: acme", "- name: acme\n    contract: {kind: prepaid}")
    )
    applied(cli, file)
    return cli


def test_credits_are_given_shown_and_taken_back(prepaid: Cli) -> None:
    said = prepaid("credits", "add", "acme", "25.00", "--reference", "wire-1")
    assert said == "available 25.00 USD (granted 25.00, owed 0.00, credit line 0.00)\n"
    again = prepaid("credits", "add", "acme", "25.00", "--reference", "wire-1", code=1)
    assert "wire-1 is credited already" in again
    table = prepaid("credits", "show", "acme")
    assert "wire-1" in table
    assert table.endswith(said)
    back = json.loads(prepaid("credits", "reverse", "acme", "wire-1", "--json"))
    assert (back["unused"], back["balance"]["available"]) == ("25.00", "0.00")


def test_an_idempotency_key_is_credited_once(prepaid: Cli) -> None:
    ask = ("credits", "add", "acme", "5", "--reference", "w", "--idempotency-key", "k", "--json")

    assert prepaid(*ask) == prepaid(*ask)
    assert (
        json.loads(prepaid("credits", "show", "acme", "--json"))["balance"]["available"] == "5.00"
    )


def test_a_month_is_closed_exported_and_verified_offline(prepaid: Cli, tmp_path: Path) -> None:
    last = datetime.now(UTC).replace(day=1) - timedelta(days=1)
    month = last.strftime("%Y-%m")

    async def sell() -> None:
        db = open_database(None, tmp_path / "data")
        async with db.begin() as connection:
            await connection.execute(update(contracts).values(from_ms=0))
        usage = {"prompt_tokens": 1_000, "cached_tokens": 0, "completion_tokens": 1_000}
        at_ms = int(last.timestamp() * 1000)
        await insert_records(db, [record(n, usage=usage, started_ms=at_ms) for n in (1, 2)])
        await db.close()

    asyncio.run(sell())
    assert prepaid("statements", "close", "acme", month) == "statement 1: 0.001 USD\n"
    assert "is closed" in prepaid("statements", "close", "acme", month, code=1)
    assert f"1  tenant  acme   {month}  USD" in prepaid("statements", "show")
    assert "receivable 0.001" in prepaid("statements", "show", "1")
    file = tmp_path / "statement.json"
    prepaid("statements", "export", "1", "--out", str(file))
    (tmp_path / "data").rename(tmp_path / "gone")  # whoever has the file needs nothing else
    said = prepaid("verify", str(file))
    assert f"statement 1 of acme, {month}: 0.001 USD; it adds up" in said
    file.write_text(file.read_text().replace("1000", "1001"))
    assert "the statement was changed" in prepaid("verify", str(file), code=1)


def test_a_month_that_is_not_over_or_had_nothing_is_no_statement(prepaid: Cli) -> None:
    prepaid("credits", "add", "acme", "5", "--reference", "w")
    assert "2999-01 is not over" in prepaid("statements", "close", "acme", "2999-01", code=1)
    assert prepaid("statements", "close", "acme", "2020-01").strip() == (
        "closed; nothing was booked in 2020-01"
    )
    preview = prepaid("statements", "show", "--preview", "acme")
    assert "customer_prepaid -5.00" in preview
    assert "no statements" in prepaid("statements", "show")
    assert "no statement 1" in prepaid("statements", "export", "1", code=1)


def test_what_is_booked_is_exported_and_gone_on_with(
    prepaid: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "postings.csv"
    ask = ("export", "postings", "--out", str(out))
    prepaid("credits", "add", "acme", "5", "--reference", "w")
    prepaid(*ask)
    first = out.read_text().splitlines()
    assert first[0].startswith("cursor,entry_key,")
    prepaid("credits", "add", "acme", "7", "--reference", "w2")
    prepaid(*ask, "--cursor", first[-1].partition(",")[0])
    whole = out.read_text().splitlines()
    assert whole[: len(first)] == first
    assert len(whole) == 2 * len(first) - 1
    assert json.loads(prepaid("export", "postings", "--format", "jsonl").splitlines()[0])
    assert "no tenant nobody" in prepaid("export", "--tenant", "nobody", code=1)


def test_the_end_of_a_credit_is_that_days_end(prepaid: Cli) -> None:
    prepaid("credits", "add", "acme", "5", "--reference", "gift", "--expires", "2097-01-31")
    assert "2097-02-01T00:00:00Z" in prepaid("credits", "show", "acme")


def test_contracts_margins_payouts_and_corrections_are_asked_for_by_name(prepaid: Cli) -> None:
    assert "prepaid" in prepaid("contracts", "show", "acme")
    assert "no tenant nobody" in prepaid("contracts", "show", "nobody", code=1)
    assert "nothing was sold in 2020-01" in prepaid("margin", "--month", "2020-01")
    pay = ("publishers", "pay", "nobody", "5", "--reference", "w")
    assert "no publisher nobody" in prepaid(*pay, code=1)
    assert "no record r1" in prepaid("records", "reverse", "r1", code=1)
    assert "no record r1" in prepaid("records", "reprice", "r1", "2", code=1)
    assert "no publisher nobody" in prepaid(
        "statements", "show", "--preview", "nobody", "--publisher", code=1
    )


def test_a_genuine_file_is_told_from_a_changed_one(cli: Cli, tmp_path: Path) -> None:
    signer = Signer("11" * 32)
    document = canonical(statement())
    path = tmp_path / "statement.json"
    path.write_bytes(signed_file(document, *signer.sign(document)))
    name = fingerprint(signer.public_key)

    said = cli("verify", str(path))
    assert "statement 7 of acme, 2026-11: 0.00000003 USD; it adds up" in said
    assert name in said
    assert json.loads(cli("verify", str(path), "--key", name, "--json"))["genuine"]
    assert "expected 00" in cli("verify", str(path), "--key", "00", code=1)
    path.write_text(path.read_text().replace('"records": 3', '"records": 4'))
    assert "the statement was changed" in cli("verify", str(path), code=1)
    assert "No such file" in cli("verify", str(tmp_path / "none"), code=1)
