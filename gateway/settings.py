"""The Settings tree: every knob of a gateway, frozen, read once at the edge.

Each field is a flag (``--drain-s 10``) and a variable (``TF_DRAIN_S=10``); a nested field joins its
path (``TF_WIRE_HEAD_S``, ``--wire-head-s``). Flags win over variables, variables over defaults.
docs/settings.md is generated from these descriptions. Not here: accounts, models, limits, prices,
which are rows in the database.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class WireSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The front door's limits and deadlines."""

    headers_max: Annotated[int, Meta(ge=1, description="headers in one request")] = 100
    head_bytes_max: Annotated[int, Meta(ge=1024, description="bytes of one request head")] = 32_768
    uri_bytes_max: Annotated[int, Meta(ge=64, description="bytes of one request target")] = 8_192
    body_bytes_max: Annotated[int, Meta(ge=1, description="bytes of one request body")] = 8_388_608
    pipelined_bytes_max: Annotated[
        int, Meta(ge=0, description="bytes kept of requests sent ahead of their turn")
    ] = 65_536
    head_s: Annotated[float, Meta(gt=0, description="time to receive a whole head")] = 10.0
    body_s: Annotated[float, Meta(gt=0, description="time to receive a whole body")] = 30.0
    body_bytes_per_s_min: Annotated[int, Meta(ge=0, description="slowest body accepted")] = 1_000
    idle_s: Annotated[float, Meta(gt=0, description="an idle keep-alive connection lives")] = 75.0
    stall_s: Annotated[float, Meta(gt=0, description="a reader that does not read lives")] = 30.0
    connections_max: Annotated[int, Meta(ge=1, description="connections of one process")] = 10_000
    connections_per_address_max: Annotated[
        int, Meta(ge=1, description="connections from one address")
    ] = 1_000
    upstream_idle_s: Annotated[
        float, Meta(gt=0, description="an idle engine connection lives; below the engine's own")
    ] = 4.0
    silence_s: Annotated[
        float, Meta(gt=0, description="silence of a stream before the head and a ping go out")
    ] = 20.0
    tick_s: Annotated[float, Meta(gt=0, description="grain of all deadlines")] = 0.25


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """See the module."""

    data_dir: Annotated[str, Meta(description="folder of everything this host keeps")] = ".data"
    host: Annotated[str, Meta(description="address of the API")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="port of the API; 0 = a free one")] = (
        8080
    )
    control_host: Annotated[str, Meta(description="address of the control listener")] = "127.0.0.1"
    control_port: Annotated[
        int, Meta(ge=0, le=65_535, description="port of the control listener; 0 = a free one")
    ] = 8081
    processes: Annotated[int, Meta(ge=1, le=256, description="data processes")] = 1
    database_url: Annotated[
        str | None,
        Meta(description="postgresql://... ; default: SQLite in the data folder"),
    ] = None
    redis_url: Annotated[
        str | None, Meta(description="redis://, rediss:// or unix:// of Redis 7+ or Valkey 7.2+")
    ] = None
    store: Annotated[
        Literal["auto", "redis", "memory"], Meta(description="where reservations live")
    ] = "auto"
    pepper: Annotated[
        str | None,
        Meta(description="secret of the key digests; default: made once in the data folder"),
    ] = None
    drain_s: Annotated[float, Meta(ge=0, description="time streams get to finish on SIGTERM")] = (
        30.0
    )
    trusted_proxies: Annotated[
        str, Meta(description="comma-separated addresses or networks whose X-Forwarded-For counts")
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least severe log line")
    ] = "info"
    max_stale_s: Annotated[
        float, Meta(gt=0, description="age of the snapshot past which requests are refused")
    ] = 3_600.0
    key_env: Annotated[
        str, Meta(pattern="^[a-z]{1,8}$", description="second part of new keys: tf_<env>_...")
    ] = "live"
    otlp_endpoint: Annotated[
        str | None, Meta(description="OTLP/HTTP collector, e.g. http://127.0.0.1:4318")
    ] = None
    trace_sample: Annotated[float, Meta(ge=0, le=1, description="share of requests traced")] = 0.01
    access_log: Annotated[bool, Meta(description="one JSON line a request on stderr")] = True
    board_slots: Annotated[
        int, Meta(ge=16, le=1_000_000, description="requests in flight at once in one process")
    ] = 4_096
    wire: WireSettings = WireSettings()
