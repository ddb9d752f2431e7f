"""The endpoints this process forwards to: sockets, load, and what is known of each.

One ``Engine`` per endpoint of the snapshot, made when first needed and closed when the endpoint
goes. It joins the picture (``routing.topology``), the signals from control, this process's own
load, and the connection pool. Not here: which endpoint serves (``routing.decide``).
"""

import os
from collections.abc import Mapping
from pathlib import Path

from gateway.snapshot import ModelDoc, Snapshot
from gateway.wire.dial import parse_endpoint
from gateway.wire.pool import Pool as ConnectionPool
from routing.signals import EndpointLoad, EndpointSignals
from routing.topology import Endpoint, Pool, UsageMode

#: What an endpoint of a dialect is believed to report in streams until a probe or a 400 tells.
FIRST_USAGE: dict[str, UsageMode] = {"vllm": "continuous", "nim": "continuous", "openai": "final"}
NEXT_USAGE: dict[UsageMode, UsageMode] = {"continuous": "final", "final": "none", "none": "none"}


class Engine:
    """One endpoint as this process sees it."""

    __slots__ = ("credential", "endpoint", "learned_usage", "pool")

    def __init__(self, endpoint: Endpoint, environ: Mapping[str, str], idle_s: float) -> None:
        self.endpoint = endpoint
        self.learned_usage: UsageMode | None = None  # a 400 taught it
        self.credential = credential_of(endpoint, environ)
        self.pool = ConnectionPool(
            parse_endpoint(endpoint.url),
            idle_s=idle_s,
            ca_file=endpoint.ca_file,
            credential=self.credential,
        )

    def usage_mode(self, signals: EndpointSignals | None) -> UsageMode:
        """How to ask for counts: what a 400 taught, what is configured, what was probed."""
        if self.learned_usage is not None:
            return self.learned_usage
        if self.endpoint.usage != "auto":
            return self.endpoint.usage
        if signals is not None and signals.usage is not None:
            return signals.usage
        return FIRST_USAGE[self.endpoint.dialect]

    def refuse_usage(self, mode: UsageMode) -> None:
        """The engine answered 400 to this way of asking: never again in this process."""
        self.learned_usage = NEXT_USAGE[mode]


class Engines:
    """By endpoint id. ``sync`` after the snapshot changed."""

    def __init__(self, environ: Mapping[str, str], idle_s: float) -> None:
        self._environ = environ
        self._idle_s = idle_s
        self._engines: dict[int, Engine] = {}
        self.loads: dict[int, EndpointLoad] = {}
        self.signals: dict[int, EndpointSignals] = {}

    def get(self, endpoint: Endpoint) -> Engine:
        known = self._engines.get(endpoint.id)
        if known is None or known.endpoint is not endpoint:
            if known is not None and known.endpoint == endpoint:
                known.endpoint = endpoint  # the same, told again
            else:
                known = self._replace(known, endpoint)
        return known

    def renew(self, endpoint: Endpoint) -> None:
        """The engine refused our credential: read it again, for it may have been changed."""
        known = self._engines.get(endpoint.id)
        if known is not None:
            self._replace(known, known.endpoint)

    def find(self, endpoint_id: int) -> Engine | None:
        """An engine that was forwarded to; None when its endpoint has gone."""
        return self._engines.get(endpoint_id)

    def context_of(self, model: ModelDoc, pool: Pool | None) -> int | None:
        """The window the pool's engines told for a model, where the catalog names none."""
        smallest: int | None = None
        for endpoint in pool.endpoints if pool is not None else ():
            signals = self.signals.get(endpoint.id)
            told = None if signals is None else signals.max_model_len.get(model.upstream)
            if told and (smallest is None or told < smallest):
                smallest = told
        return smallest

    def headers_for(self, endpoint: Endpoint) -> list[tuple[bytes, bytes]]:
        """Of a question that is no inference: JSON, and the endpoint's own key."""
        headers = [(b"content-type", b"application/json")]
        credential = credential_of(endpoint, self._environ)
        # A line end in a secret is a mistake in a file; sent, it would be a second header.
        if credential and not set(credential) & set(b"\r\n\0"):
            headers.append((b"authorization", b"Bearer " + credential))
        return headers

    def template_of(self, model: ModelDoc, pool: Pool | None) -> int | None:
        """What a template adds to a prompt at any of the pool's engines; None = one does not tell."""
        most: int | None = None
        for endpoint in pool.endpoints if pool is not None else ():
            signals = self.signals.get(endpoint.id)
            told = None if signals is None else signals.template_tokens.get(model.upstream)
            if told is None:
                return None
            most = told if most is None else max(most, told)
        return most

    def sync(self, snapshot: Snapshot) -> None:
        """Forget endpoints that are gone; requests on them finish on their own sockets."""
        live = {each.id for pool in snapshot.pools.values() for each in pool.endpoints}
        for gone in self.loads.keys() - live:
            del self.loads[gone]
            self.signals.pop(gone, None)
            engine = self._engines.pop(gone, None)
            if engine is not None:
                engine.pool.close()
        for endpoint_id in live - self.loads.keys():
            self.loads[endpoint_id] = EndpointLoad()

    def close(self) -> None:
        for engine in self._engines.values():
            engine.pool.close()
        self._engines.clear()

    def _replace(self, known: Engine | None, endpoint: Endpoint) -> Engine:
        made = Engine(endpoint, self._environ, self._idle_s)
        if known is not None:
            if known.endpoint.url == endpoint.url:
                made.learned_usage = known.learned_usage
            known.pool.close()
        self._engines[endpoint.id] = made
        return made


def credential_of(endpoint: Endpoint, environ: Mapping[str, str]) -> bytes | None:
    """The endpoint's own key, from where it says; None where it needs none or there is none.

    Read in the process that uses it: the value is in no database, no document and no log.
    """
    if endpoint.api_key_env:
        value = environ.get(endpoint.api_key_env, "")
        return value.encode() or None
    if endpoint.api_key_file:
        try:
            return Path(endpoint.api_key_file).read_bytes().strip() or None
        except OSError:
            return None  # the engine's 401 then says so, counted as misconfigured
    return None


def process_environ() -> Mapping[str, str]:
    """The environment of this process, where endpoints' credentials may be."""
    return os.environ
