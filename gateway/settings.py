"""The Settings tree: every knob of a gateway, frozen, read once at the edge.

Each field is a flag (``--drain-s 10``) and a variable (``TF_DRAIN_S=10``); a nested field joins its
path (``TF_WIRE_HEAD_S``, ``--wire-head-s``). Flags win over variables, variables over defaults.
docs/settings.md is generated from these descriptions. Not here: accounts, models, limits, prices,
which are rows in the database. ``load`` is the only reader of the environment's ``TF_`` variables,
and is handed them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

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
    linger_s: Annotated[
        float, Meta(gt=0, description="a refused client gets to send on, so that it reads why")
    ] = 5.0
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


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one request may ask of an engine."""

    choices_max: Annotated[
        int, Meta(ge=1, le=128, description="largest n and best_of of a request")
    ] = 8
    prompts_max: Annotated[
        int, Meta(ge=1, le=2_048, description="most prompts or inputs of a request")
    ] = 2_048
    prompt_logprobs_max: Annotated[
        int, Meta(ge=0, le=1_000, description="largest prompt_logprobs of a request")
    ] = 20
    ignore_eos: Annotated[bool, Meta(description="requests may set ignore_eos")] = True
    echo: Annotated[bool, Meta(description="requests may have their prompt echoed")] = True


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
    hosts: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="hosts that share the store, at least; how many processes do is learned, "
            "and what one may admit while it is away is its part",
        ),
    ] = 1
    database_url: Annotated[
        str | None,
        Meta(description="postgresql://... ; default: SQLite in the data folder"),
    ] = None
    redis_url: Annotated[
        str | None,
        Meta(
            description="redis://, rediss:// or unix:// of Redis 7+ or Valkey 7.2+; of a cluster "
            "redis://host:port,host:port?cluster=true"
        ),
    ] = None
    store: Annotated[
        Literal["auto", "redis", "memory"], Meta(description="where reservations live")
    ] = "auto"
    pepper: Annotated[
        str | None,
        Meta(description="secret of the key digests; default: made once in the data folder"),
    ] = None
    stripe_secret: Annotated[
        str | None,
        Meta(description="signing secret of Stripe's webhook at /webhooks/stripe; none = off"),
    ] = None
    provider_name: Annotated[
        str,
        Meta(min_length=1, max_length=200, description="who provides and bills, in FOCUS exports"),
    ] = "Token Factory"
    drain_s: Annotated[float, Meta(ge=0, description="time streams get to finish on SIGTERM")] = (
        30.0
    )
    trusted_proxies: Annotated[
        str, Meta(description="comma-separated addresses or networks whose X-Forwarded-For counts")
    ] = ""
    proxy_protocol: Annotated[
        bool,
        Meta(description="trusted proxies begin each connection with a PROXY header (v1 or v2)"),
    ] = False
    cors_origins: Annotated[
        str, Meta(description="comma-separated origins whose pages may call the API; none = off")
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
    journal_segment_bytes: Annotated[
        int,
        Meta(
            ge=65_536,
            le=1 << 30,
            description="a file of a data process's journal; two are always allocated",
        ),
    ] = 4_194_304
    reconciliations_kept_days: Annotated[
        int,
        Meta(
            ge=2, le=36_500, description="reports of reconciliations, and probes, are kept so long"
        ),
    ] = 90
    tokenizers_dir: Annotated[
        str | None,
        Meta(
            description="folder of vocabularies (NAME.tiktoken) to estimate prompts by; needs the "
            "tokenizers extra"
        ),
    ] = None
    tokenizer: Annotated[
        str, Meta(pattern="^[A-Za-z0-9._-]{1,64}$", description="the vocabulary in that folder")
    ] = "o200k_base"
    policy: PolicySettings = PolicySettings()
    unbilled_endings_per_minute: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="requests of one key that may end without a bill, in one process; 0 = any",
        ),
    ] = 600
    wire: WireSettings = WireSettings()


SECRETS = (("pepper",), ("stripe_secret",))
#: Scheme, host and port; no path, no upper case, no wildcard.
ORIGIN = re.compile(r"https?://(?:[0-9a-z._-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
#: How near an unknown variable must be to count as mistyped: TF_PROT is, TF_CPP_MIN_LOG_LEVEL not.
TYPO_RATIO = 0.8


class SettingsError(Exception):
    """A flag or variable that cannot be obeyed; the message names it, its value, what is expected."""


class Loaded(msgspec.Struct, frozen=True):
    """``origins`` maps a field's path ("wire.head_s") to "default", its variable or its flag.

    ``ignored``: ``TF_`` variables that are not ours.
    """

    settings: Settings
    origins: dict[str, str]
    ignored: tuple[str, ...]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One setting as documentation shows it."""

    path: str
    variable: str
    flag: str
    expected: str
    default: str
    description: str


class _Field(msgspec.Struct, frozen=True):
    path: tuple[str, ...]
    type: Any  # with its bounds
    default: Any

    @property
    def variable(self) -> str:
        return "TF_" + "_".join(self.path).upper()

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")


def load(environ: Mapping[str, str], flags: Mapping[str, str]) -> Loaded:
    """Settings from ``TF_`` variables and flags ("--wire-head-s" -> text); flags win.

    An empty text unsets an optional setting. Raises ``SettingsError`` for a value that is not what
    is expected and for a variable that is nearly one of ours; Terraform and TensorFlow have
    ``TF_`` variables, too, so others are left alone.
    """
    fields = list(_fields(Settings))
    variables = {field.variable for field in fields}
    ignored = sorted(n for n in environ if n.startswith("TF_") and n not in variables)
    _refuse_unknown(ignored, sorted(variables))
    tree: dict[str, Any] = {}
    origins = {}
    for field in fields:
        origin = next(
            (n for n, given in ((field.flag, flags), (field.variable, environ)) if n in given),
            "default",
        )
        origins[".".join(field.path)] = origin
        if origin == "default":
            continue
        text = flags[origin] if origin == field.flag else environ[origin]
        branch = tree
        for name in field.path[:-1]:
            branch = branch.setdefault(name, {})
        branch[field.path[-1]] = _value(field, origin, text)
    settings = msgspec.convert(tree, Settings)
    _check_proxies(settings.trusted_proxies, origins["trusted_proxies"])
    if settings.proxy_protocol and not settings.trusted_proxies.strip():
        raise SettingsError(
            f"{origins['proxy_protocol']}=true: expected TF_TRUSTED_PROXIES to name the proxies"
        )
    _check_origins(settings.cors_origins, origins["cors_origins"])
    return Loaded(settings, origins, tuple(ignored))


def describe() -> list[Row]:
    """Every setting, in the order of the tree."""
    return [
        Row(
            path=".".join(field.path),
            variable=field.variable,
            flag=field.flag,
            expected=_expected(field.type),
            default=_text(field.default),
            description=_meta(field.type).description or "",
        )
        for field in _fields(Settings)
    ]


def reference() -> str:
    """The page docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every setting is a variable and a flag of every command. A flag wins over a variable, a",
        "variable over the default. A mistyped `TF_` variable is an error. Accounts, models, limits",
        "and prices are no settings: they are applied from a file (`tokenfactory apply`).",
        "`tokenfactory config show` prints each setting with its origin. This page is generated:",
        "`tokenfactory config reference > docs/settings.md`.",
        "",
        "| variable | flag | default | expected | what it is |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{r.variable}` | `{r.flag}` | {f'`{r.default}`' if r.default else ''} "
        f"| {r.expected.replace('|', ', ')} | {r.description} |"
        for r in describe()
    ]
    return "\n".join(lines) + "\n"


def shown(settings: Settings) -> dict[str, str]:
    """Every value as text by path, without the secrets, or the passwords inside URLs."""
    values = {}
    for field in _fields(Settings):
        value: Any = settings
        for name in field.path:
            value = getattr(value, name)
        text = _text(value)
        if field.path in SECRETS and text:
            text = "(set)"
        values[".".join(field.path)] = _without_password(text)
    return values


def _fields(tree: type[msgspec.Struct], above: tuple[str, ...] = ()) -> Iterator[_Field]:
    hints = get_type_hints(tree, include_extras=True)
    for field in msgspec.structs.fields(tree):
        hint = hints[field.name]
        path = (*above, field.name)
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from _fields(hint, path)
        else:
            yield _Field(path, hint, field.default)


def _refuse_unknown(given: Iterable[str], known: list[str]) -> None:
    for name in sorted(given):
        # Imported here: for those alone who set what we do not know.
        from difflib import get_close_matches  # noqa: PLC0415

        near = get_close_matches(name, known, 1, TYPO_RATIO)
        if near:
            raise SettingsError(f"{name} is no setting; did you mean {near[0]}?")


def _value(field: _Field, origin: str, text: str) -> Any:
    if not text and type(None) in get_args(_bare(field.type)):
        return None
    try:
        return msgspec.convert(text, field.type, strict=False)
    except msgspec.ValidationError:
        # A secret must not come back out of an error message.
        seen = "(hidden)" if field.path in SECRETS else repr(_without_password(text))
        raise SettingsError(f"{origin}={seen}: expected {_expected(field.type)}") from None


def _check_proxies(text: str, origin: str) -> None:
    if not text.strip():
        return
    # Imported here: few set it.
    from ipaddress import ip_network  # noqa: PLC0415

    for part in text.split(","):
        try:
            ip_network(part.strip())
        except ValueError:
            raise SettingsError(
                f"{origin}={text!r}: expected comma-separated addresses or networks, "
                f"e.g. 127.0.0.1,10.0.0.0/8; {part.strip()!r} is neither"
            ) from None


def _check_origins(text: str, origin: str) -> None:
    for part in text.split(",") if text.strip() else ():
        if not ORIGIN.fullmatch(part.strip()):
            raise SettingsError(
                f"{origin}={text!r}: expected comma-separated origins as browsers write them, "
                f"e.g. https://app.example.com,http://localhost:3000; {part.strip()!r} is none"
            )


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _meta(hint: Any) -> Meta:
    return next((a for a in get_args(hint)[1:] if isinstance(a, Meta)), Meta())


def _expected(hint: Any) -> str:
    """What a value may be, as a phrase: "an integer from 1 to 256"."""
    bare, meta = _bare(hint), _meta(hint)
    if get_origin(bare) is Literal:
        return "|".join(get_args(bare))
    nouns = {int: "an integer", float: "a number", bool: "true or false"}
    phrase = nouns.get(bare, "text")
    if meta.pattern is not None:
        phrase += f" that matches {meta.pattern}"
    if meta.gt is not None:
        phrase += f" above {meta.gt}"
    if meta.ge is not None:
        phrase += f" from {meta.ge}"
    if meta.le is not None:
        phrase += f" to {meta.le}"
    return phrase


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _without_password(text: str) -> str:
    scheme, sep, rest = text.partition("://")
    user, at, host = rest.rpartition("@")
    if not sep or not at:
        return text
    name, colon, _ = user.partition(":")
    return f"{scheme}://{name}{':***' if colon else ''}@{host}"
