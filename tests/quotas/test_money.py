"""Money is exact: parsing, printing and the one rounding."""

from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotas.errors import MoneyError
from quotas.money import cost_nano, format_amount, parse_amount, parse_price


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
