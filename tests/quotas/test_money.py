"""Money is exact: parsing, printing and the one rounding."""

import ast
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotas.errors import MoneyError
from quotas.money import cost_nano, divide_up, format_amount, parse_amount, parse_price


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0.10", 100_000_000),
        ("0.0125", 12_500_000),
        ("0", 0),
        ("-0.00", 0),
        ("12.50", 12_500_000_000),
        ("0.000000001", 1),
        ("1.50000000000", 1_500_000_000),
        ("-3", -3_000_000_000),
    ],
)
def test_decimal_text_becomes_nano_units(text, nano):
    assert parse_amount(text) == nano


@pytest.mark.parametrize(
    "text",
    ["", ".", ".5", "5.", "1e3", "+1", "1,5", " 1", "1\n", "0x1", "NaN", "inf", "٣", "1_0", "--1"],
)
def test_anything_but_plain_digits_is_refused(text):
    with pytest.raises(MoneyError):
        parse_amount(text)


@pytest.mark.parametrize("text", ["0.0000000001", "9223372037", "9" * 400])
def test_what_a_column_cannot_hold_exactly_is_refused(text):
    with pytest.raises(MoneyError):
        parse_amount(text)


def test_price_is_never_negative():
    with pytest.raises(MoneyError):
        parse_price("-0.01")


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_printed_amount_reads_back_as_itself(nano):
    assert parse_amount(format_amount(nano)) == nano


@given(st.integers(0, 10**10), st.integers(0, 10**14))
def test_cost_is_the_exact_product_rounded_half_to_even(units, price):
    exact = Decimal(units) * Decimal(price) / Decimal(1_000_000)

    assert cost_nano(units, price) == int(exact.quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def test_halves_go_to_the_even_neighbour():
    assert [cost_nano(units, 500_000) for units in (1, 3, 5, 7)] == [0, 2, 2, 4]


@given(st.integers(-(10**18), 10**18), st.integers(1, 10**9))
def test_what_is_held_is_never_less_than_what_may_be_owed(numerator, denominator):
    held = divide_up(numerator, denominator)

    assert (held - 1) * denominator < numerator <= held * denominator


QUOTAS = Path(__file__).parents[2] / "quotas"
#: Seconds that pass, and tokens per byte that an estimator learns: neither is money.
NOT_MONEY = {
    "ports.py", "estimate.py", "leases.py", "unbilled.py", "store/memory.py", "store/pipeline.py",
    "store/cluster.py", "store/redis.py", "store/server.py",
}  # fmt: skip


def floats_in(source: str) -> list[int]:
    """Lines with a float: a literal, the name, or a division that makes one."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Name) and node.id == "float")
        or (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div))
        or (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "round")
        or (isinstance(node, ast.Attribute) and node.attr == "timestamp")
    ]


def test_no_float_comes_near_money():
    for path in QUOTAS.rglob("*.py"):
        if str(path.relative_to(QUOTAS)) not in NOT_MONEY:
            assert floats_in(path.read_text()) == [], path


@pytest.mark.parametrize(
    "seeded", ["1.5", "a / b", "a /= b", "float(a)", "round(a)", "m.timestamp()"]
)
def test_the_search_for_floats_finds_each_kind(seeded):
    assert floats_in(seeded) == [1]
