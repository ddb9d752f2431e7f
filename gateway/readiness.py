"""Whether a data process serves new requests, and why not. Time is an argument; nothing is asked here."""


class Readiness:
    """``max_stale_s``: how old a snapshot may be that is still served from."""

    __slots__ = ("_max_stale_s", "draining")

    def __init__(self, max_stale_s: float) -> None:
        self._max_stale_s = max_stale_s
        self.draining = False

    def reason(self, version: int, age_s: float) -> str:
        """Why no new request is served; "" where they are. Asked by every one of them.

        ``version`` of the snapshot, 0: none came yet; ``age_s`` since control was last heard.
        """
        if self.draining:
            return "draining"
        if not version:
            return "no snapshot yet"
        if age_s > self._max_stale_s:
            return f"the snapshot is {age_s:.0f} s old"
        return ""

    def report(self, version: int, age_s: float, *, control: bool, store: str) -> dict[str, object]:
        """The answer of ``/readyz``: ``control`` is connected, the store has a name."""
        reason = self.reason(version, age_s)
        return {
            "ready": not reason,
            "reason": reason,
            "snapshot_version": version,
            "snapshot_age_s": round(age_s, 3),
            "control": "connected" if control else "away",
            "store": store,
        }
