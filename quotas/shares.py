"""Who gets what of a net sale: publishers by basis points or a floor, the platform the rest.

Parts always sum to the whole: Hamilton's largest remainder, ties to the first. Not here: what net
is (``quotas.charging``), rows and dates (``gateway.store.publishers``).
"""

from collections.abc import Sequence

import msgspec

from quotas.money import cost_nano

BASIS_POINTS = 10_000


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """One publisher's part of one model's sales. ``floor_nano_per_million``: at least this much
    for a million tokens billed, whatever the sale brought; the platform pays the difference.
    """

    publisher_id: int
    basis_points: int = 0
    floor_nano_per_million: int = 0


def split(whole: int, weights: Sequence[int]) -> list[int]:
    """``whole`` in parts proportional to ``weights`` (>= 0, not all 0), which sum to it exactly.

    >>> split(100, [1, 1, 1])
    [34, 33, 33]
    """
    if whole < 0:
        return [-part for part in split(-whole, weights)]
    weight = sum(weights)
    if whole == weight:
        return list(weights)
    parts = [divmod(whole * each, weight) for each in weights]
    left = whole - sum(quotient for quotient, _ in parts)
    order = sorted(range(len(parts)), key=lambda index: (-parts[index][1], index))
    given = set(order[:left])
    return [quotient + (index in given) for index, (quotient, _) in enumerate(parts)]


def share_out(net_nano: int, tokens: int, shares: Sequence[Share]) -> tuple[list[int], int]:
    """(each publisher's part, the platform's); they sum to ``net_nano``. The platform's is negative
    where floors promise more than the sale brought.
    """
    rest = BASIS_POINTS - sum(share.basis_points for share in shares)
    parts = split(net_nano, [*(share.basis_points for share in shares), rest])[:-1]
    for index, share in enumerate(shares):
        parts[index] = max(parts[index], cost_nano(tokens, share.floor_nano_per_million))
    return parts, net_nano - sum(parts)
