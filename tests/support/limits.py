"""Short words for limits and charges in tests."""

from collections.abc import Sequence

from quotas.limits import Charge, Dimension, Level, Limit, Window
from quotas.ports import Settlement


def bucket(
    scope: str = "t1", dimension: str = "tokens", *, capacity: int = 1000, per_minute: int = 1
) -> Limit:
    """Refills one unit a minute unless told: levels stand still for a test's length."""
    return Limit(scope, f"scope {scope}", dimension, "bucket", capacity, per_minute, 1)


def slots(scope: str = "t1", *, capacity: int = 2) -> Limit:
    return Limit(scope, f"scope {scope}", "concurrency", "concurrency", capacity, 0, 1)


def quota(
    scope: str = "t1",
    dimension: Dimension = "tokens",
    *,
    capacity: int = 1000,
    window: Window = "day",
    shadow: bool = False,
) -> Limit:
    return Limit(scope, f"scope {scope}", dimension, "quota", capacity, 0, 1, window, shadow)


def balance(scope: str = "t1", *, credit: int = 0) -> Limit:
    return Limit(scope, f"scope {scope}", "money", "balance", credit, 0, 1, "now")


def settlement(tag: str, reservation_id: str, epoch: str, *charged: Charge) -> Settlement:
    return Settlement(tag, reservation_id, epoch, tuple(charged), {})


def left(levels: Sequence[Level]) -> list[int]:
    return [level.remaining for level in levels]
