"""Statements add up or are not made, and the same ledger gives the same bytes."""

import msgspec
import pytest

from quotas.statement import (
    Statement,
    StatementLine,
    StatementWrong,
    canonical,
    checked,
    digest,
    sorted_lines,
)

LINES = (
    StatementLine(model="b", meter="output", price_version=1, units=5, amount_nano=20),
    StatementLine(model="a", meter="output", price_version=2, units=2, amount_nano=4),
    StatementLine(model="a", meter="input", price_version=2, units=9, amount_nano=6),
    StatementLine(model="a", meter="input", price_version=1, units=0, amount_nano=0),
)


def statement(**fields: object) -> Statement:
    made = Statement(
        number=7,
        kind="tenant",
        party="acme",
        party_id=1,
        period="2026-11",
        currency="USD",
        records=3,
        lines=sorted_lines(LINES),
        charged_nano=30,
        opening={"receivable": 5},
        movements={"receivable": 30, "revenue": -30},
        closing={"receivable": 35, "revenue": -30},
        closed_ms=1,
    )
    return msgspec.structs.replace(made, **fields)


def test_lines_are_sorted_and_lines_of_nothing_left_out():
    assert [(line.model, line.meter) for line in sorted_lines(LINES)] == [
        ("a", "input"),
        ("a", "output"),
        ("b", "output"),
    ]


def test_a_statement_that_adds_up_is_given_back():
    assert checked(statement(), 30) == statement()


@pytest.mark.parametrize(
    ("fields", "owed"),
    [
        ({}, 31),
        ({"charged_nano": 29}, 30),
        ({"closing": {"receivable": 34, "revenue": -30}}, 30),
        ({"opening": {}}, 30),
    ],
)
def test_one_nano_amiss_and_nothing_is_closed(fields, owed):
    with pytest.raises(StatementWrong):
        checked(statement(**fields), owed)


def test_the_same_statement_is_the_same_bytes_in_whatever_order_it_was_made():
    turned = statement(closing={"revenue": -30, "receivable": 35})

    assert canonical(turned) == canonical(statement())
    assert digest(canonical(turned)) == digest(canonical(statement()))
    assert digest(canonical(statement(number=8))) != digest(canonical(statement()))
