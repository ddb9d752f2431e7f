"""How much of a body is text: pictures and recordings are encoded in it, and are no text.

Looked at in slices, as everything of a large body is. Not here: what a prompt is estimated at.
"""

import re
from collections.abc import Generator

from gateway.contract.skeleton import SLICE_BYTES

MARK = b";base64,"
#: What one picture or recording counts as, until the model has been seen to count.
MEDIA_BYTES = 3 * 1024
#: Shorter ones are counted as text.
_RUN_BYTES_MIN = 256
_BEGINS = re.compile(rb";base64,[A-Za-z0-9+/=\\]{%d}" % _RUN_BYTES_MIN)
_RUN = re.compile(rb"[A-Za-z0-9+/=\\]*+")
_OVERLAP = len(MARK) + _RUN_BYTES_MIN


def text_bytes(body: bytes) -> Generator[None, None, int]:
    """The body's bytes without what is encoded in it; each such piece counts as some text."""
    at = left_out = media = 0
    while at < len(body):
        found = _BEGINS.search(body, at, at + SLICE_BYTES + _OVERLAP)
        if found is None:
            at += SLICE_BYTES
        else:
            at = yield from _run_end(body, found.end())
            left_out += at - found.start()
            media += 1
        yield
    return len(body) - left_out + MEDIA_BYTES * media


def _run_end(body: bytes, at: int) -> Generator[None, None, int]:
    while at < len(body):
        run = _RUN.match(body, at, at + SLICE_BYTES)
        assert run is not None  # it may match nothing
        if run.end() < at + SLICE_BYTES:
            return run.end()
        at = run.end()
        yield
    return len(body)
