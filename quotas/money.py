"""Money as integers: nano-units of a currency, and prices in nano-units per million units.

A price of 0.0125 per million tokens is 12,500,000, exactly; nothing here is ever a float. One
rounding for each record and meter, half to even; a total is the sum of its lines. Not here: which
meters a request bills (``quotas.pricing``), and accounts.
"""

import re

from quotas.errors import MoneyError

NANO = 1_000_000_000
MILLION = 1_000_000
DECIMALS = 9
#: SQL columns are signed 64-bit integers: 9.2e18 nano is 9.2e9 of a currency's units.
MAX_NANO = 2**63 - 1

_AMOUNT = re.compile(r"(-?)([0-9]{1,18})(?:\.([0-9]{1,18}))?", re.ASCII)


def parse_amount(text: str) -> int:
    """Nano-units of a decimal text such as "12.50" or "-0.000000001".

    Raises ``MoneyError`` for anything else: exponents, signs other than "-", more than nine
    decimals that matter, more than a signed 64-bit column holds.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise MoneyError("an amount is digits with at most one decimal point, such as 12.50")
    sign, whole, fraction = match[1], match[2], (match[3] or "").rstrip("0")
    if len(fraction) > DECIMALS:
        raise MoneyError(f"an amount has at most {DECIMALS} decimals")
    nano = int(whole) * NANO + int(fraction.ljust(DECIMALS, "0"))
    if nano > MAX_NANO:
        raise MoneyError("the amount is too large")
    return -nano if sign else nano


def parse_price(text: str) -> int:
    """Nano-units per million units of a price per million.

    >>> parse_price("0.10")
    100000000
    """
    nano = parse_amount(text)
    if nano < 0:
        raise MoneyError("a price is not negative")
    return nano


def format_amount(nano: int) -> str:
    """The shortest exact decimal text with at least two decimals; ``parse_amount`` inverts it.

    >>> format_amount(12_500_000)
    '0.0125'
    """
    whole, fraction = divmod(abs(nano), NANO)
    digits = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}{whole}.{digits}"


def decimal(nano: int) -> str:
    """The shortest exact decimal text: what a cost looks like in answers.

    >>> decimal(12_500_000), decimal(2_000_000_000)
    ('0.0125', '2')
    """
    sign = "-" if nano < 0 else ""
    whole, rest = divmod(abs(nano), NANO)
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".")


def cost_nano(units: int, nano_per_million: int) -> int:
    """What ``units`` cost in nano-units, rounded half to even.

    >>> cost_nano(1, 500_000), cost_nano(3, 500_000)
    (0, 2)
    """
    return divide(units * nano_per_million, MILLION)


def divide(numerator: int, denominator: int) -> int:
    """The quotient rounded half to even; ``denominator`` > 0. The one rounding of money.

    >>> divide(1, 2), divide(3, 2), divide(-1, 2), divide(-3, 2)
    (0, 2, 0, -2)
    """
    quotient, rest = divmod(numerator, denominator)
    twice = rest * 2
    return quotient + (twice > denominator or (twice == denominator and quotient % 2))


def divide_up(numerator: int, denominator: int) -> int:
    """The quotient rounded up: what is held is never less than what may be owed."""
    return -(-numerator // denominator)


def micro(nano: int) -> int:
    """Nano-units as micro-units, rounded up: what scripts hold and charge.

    >>> micro(1), micro(2000)
    (1, 2)
    """
    return divide_up(nano, 1000)
