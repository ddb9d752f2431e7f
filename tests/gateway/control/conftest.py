"""A real Valkey for what control says through it."""

from tests.support.valkey import own_valkey, valkey

__all__ = ["own_valkey", "valkey"]
