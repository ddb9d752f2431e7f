"""What a demo engine can be told to do wrong, and what it remembers of each request.

Set at run time, as attributes; they hold for requests that begin afterwards. For tests and drills;
the defaults do nothing.
"""

from typing import Literal

import msgspec


class Faults(msgspec.Struct, kw_only=True):
    """Frames are SSE events of a stream, counted from 1; for a whole answer, steps of the engine.

    Those of ``status`` to ``length_off_by`` touch chat, completions and embeddings alone.
    """

    status: int = 0  # answer this status in vLLM's shape, 0 = none
    retry_after: str = ""  # with ``status``: the header's value
    refuse_continuous_usage: bool = False  # 400 that names continuous_usage_stats
    refuse_stream_options: bool = False  # 400 that names stream_options
    usage: Literal["asked", "final", "none"] = "asked"  # "final": no running counts
    delay_s: float = 0.0  # before the first byte
    error_first: bool = False  # a stream: head, an error event, [DONE]
    die_after_frames: int | None = None  # close; 0: without a byte
    stall_after_frames: int | None = None  # say nothing more, keep the connection; 0: not a byte
    garble_frame: int | None = None  # this frame is not JSON
    extra_bytes: bytes = b""  # after the whole response
    length_off_by: int = 0  # added to content-length of whole answers
    refuse_connections: bool = False  # reset every new connection
    idle_close_s: float | None = None  # close idle keep-alive connections; None: as vLLM, 5 s
    health_status: int = 0  # of /health, 0 = 200


class Seen(msgspec.Struct, kw_only=True):
    """One request as the engine saw it. Times are ``time.monotonic()``."""

    request_id: str
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    began_s: float
    status: int = 0
    prompt_tokens: int = 0  # once per prompt
    tokens: int = 0  # generated, over all choices
    ended: Literal["", "finished", "aborted", "refused"] = ""
    ended_s: float = 0.0
