"""Models, pools and endpoints as routing sees them: an immutable picture.

Not here: what is going on at an endpoint right now (``routing.signals`` and the ledger).
"""

from typing import Literal

import msgspec

Dialect = Literal["vllm", "nim", "openai"]
UsageMode = Literal["auto", "continuous", "final", "none"]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One base URL of an engine. ``id`` is the SQL row's, never reused.

    ``url`` has no trailing slash and no path beyond an optional prefix. The credential itself is
    never here: ``api_key_env`` / ``api_key_file`` say where a process finds it.
    """

    id: int
    pool_id: int
    url: str
    dialect: Dialect = "vllm"
    api_key_env: str | None = None
    api_key_file: str | None = None
    ca_file: str | None = None
    max_in_flight: int = 256
    usage: UsageMode = "auto"
    draining: bool = False


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs of one kind in one place, behind one or more endpoints."""

    id: int
    name: str
    endpoints: tuple[Endpoint, ...]
