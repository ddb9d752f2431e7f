"""What a request bills: token counts onto a price's meters, and what each meter costs.

Not here: which counts are billed when a request ends badly (``quotas.settlement``), rounding
(``quotas.money``), price books (SQL).
"""

from collections.abc import Container, Mapping

from quotas.money import cost_nano
from quotas.usage import TokenUsage

INPUT = "input"
CACHED_INPUT = "cached_input"
OUTPUT = "output"
METERS = (INPUT, CACHED_INPUT, OUTPUT)


def billed_meters(usage: TokenUsage, meters: Container[str]) -> dict[str, int]:
    """Units by meter. A price without ``cached_input`` counts cached tokens as input.

    >>> billed_meters(TokenUsage(prompt=10, cached=4, completion=2), ("input", "output"))
    {'input': 10, 'output': 2}
    """
    if CACHED_INPUT not in meters:
        return {INPUT: usage.prompt, OUTPUT: usage.completion}
    # An engine that reports more cached than prompt tokens must not make input negative.
    cached = min(usage.cached, usage.prompt)
    return {INPUT: usage.prompt - cached, CACHED_INPUT: cached, OUTPUT: usage.completion}


def cost_by_meter(billed: Mapping[str, int], prices: Mapping[str, int]) -> dict[str, int]:
    """Nano-units by meter; ``prices`` maps meter to nano-units per million units.

    A meter without a price costs 0 and is still a line. The total is the sum of the lines.
    """
    return {meter: cost_nano(units, prices.get(meter, 0)) for meter, units in billed.items()}
