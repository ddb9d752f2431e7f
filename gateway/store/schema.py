"""Every table, for SQLite and PostgreSQL alike.

Ids are never reused, and rows that a usage record may name are never deleted: ``deleted_at`` ends
them. Names are unique among the living. Times are Unix milliseconds, money integers.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.schema import SchemaItem

metadata = MetaData()
#: SQLite reuses no id only with AUTOINCREMENT, which wants the type to be INTEGER.
Id = BigInteger().with_variant(Integer, "sqlite")
_LIVE = text("deleted_at IS NULL")


def _table(name: str, *columns: SchemaItem) -> Table:
    made: Table = Table(
        name,
        metadata,
        Column("id", Id, primary_key=True, autoincrement=True),
        *columns,
        sqlite_autoincrement=True,
    )
    return made


def _named(table: Table, *columns: str) -> Index:
    """A name is unique among the living rows of its parent."""
    return Index(
        f"uq_{table.name}_live",
        *(table.c[column] for column in columns),
        unique=True,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )


def _deleted_at() -> Column[int]:
    return Column("deleted_at", BigInteger)


meta = Table("meta", metadata, Column("name", Text, primary_key=True), Column("value", Text))
changes = Table(
    "changes",
    metadata,
    Column("version", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("row_id", BigInteger, nullable=False),
)
Index("ix_changes_version", changes.c.version)

tenants = _table(
    "tenants",
    Column("name", Text, nullable=False),
    Column("time_zone", Text, nullable=False, server_default="UTC"),  # of its calendar limits
    _deleted_at(),
    Column("low_balance_nano", BigInteger),  # told of below it; NULL = never
)
projects = _table(
    "projects",
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("usage_cost", Integer, nullable=False, server_default="0"),  # 1 = told in answers
    _deleted_at(),
)
keys = _table(
    "keys",
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("models", Text),  # JSON array of names; NULL = every model
    Column("expires_s", BigInteger),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
    _deleted_at(),
)
key_secrets = Table(
    "key_secrets",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("key_id", ForeignKey("keys.id"), nullable=False, index=True),
    Column("digest", LargeBinary, nullable=False),
    Column("last4", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_s", BigInteger),
)
limits = _table(
    "limits",
    Column("scope_kind", Text, nullable=False),  # tenant | project | key
    Column("scope_id", BigInteger, nullable=False),
    Column("model_id", BigInteger, nullable=False, server_default="0"),  # 0 = every model
    Column("each", Text, nullable=False, server_default=""),  # "user": of each end user
    Column("dimension", Text, nullable=False),
    Column("window", Text, nullable=False, server_default="minute"),
    Column("value", BigInteger, nullable=False),
    Column("burst", BigInteger),
    Column("cached_permille", Integer, nullable=False, server_default="1000"),
    Column("shadow", Integer, nullable=False, server_default="0"),  # 1 = counted, not enforced
    Column("outage", Text, nullable=False, server_default="fail_closed"),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("scope_kind", "scope_id", "model_id", "each", "dimension", "window"),
)
pools = _table("pools", Column("name", Text, nullable=False), _deleted_at())
endpoints = _table(
    "endpoints",
    Column("pool_id", ForeignKey("pools.id"), nullable=False),
    Column("url", Text, nullable=False),
    Column("options", Text, nullable=False),  # JSON of the rest of the declared endpoint
    _deleted_at(),
)
models = _table(
    "models",
    Column("name", Text, nullable=False),
    Column("upstream", Text, nullable=False),
    Column("pool_id", ForeignKey("pools.id"), nullable=False),
    Column("context_tokens", BigInteger),
    Column("max_output_tokens", BigInteger),
    Column("timeouts", Text, nullable=False),  # JSON
    Column("created_ms", BigInteger, nullable=False),
    _deleted_at(),
)
price_versions = _table(
    "price_versions",
    Column("model_id", ForeignKey("models.id"), nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    Column("effective_from_ms", BigInteger, nullable=False),
    Column("until_ms", BigInteger, nullable=False, server_default="0"),  # 0 = for ever
    Column("tenant_id", BigInteger, nullable=False, server_default="0"),  # 0 = everybody
    Column("tier", Text, nullable=False, server_default="default"),
    Column("multiplier_ppm", BigInteger, nullable=False, server_default="1000000"),
    Column("time_zone", Text, nullable=False, server_default="UTC"),
    Column("conditional", Text, nullable=False, server_default="[]"),  # JSON: quotas.pricing.Rate
    UniqueConstraint("model_id", "version"),
)
prices = Table(
    "prices",
    metadata,
    Column("price_version_id", ForeignKey("price_versions.id"), primary_key=True),
    Column("meter", Text, primary_key=True),
    Column("unit", Text, nullable=False),  # million_tokens | one
    Column("nano", BigInteger, nullable=False),
)
usage_records = _table(
    "usage_records",
    Column("request_id", Text, nullable=False, unique=True),
    Column("payload_hash", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("tenant_id", BigInteger, nullable=False),
    Column("project_id", BigInteger, nullable=False),
    Column("key_id", BigInteger, nullable=False),
    Column("model_id", BigInteger, nullable=False),
    Column("price_id", BigInteger, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("choices", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("ttft_ms", BigInteger, nullable=False),
    Column("total_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger, nullable=False, index=True),
    Column("cost_nano", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("attempt_log", Text, nullable=False, server_default="[]"),  # JSON: one object an attempt
    Column("unbilled_ms", BigInteger, nullable=False, server_default="0"),
    Column("month", Integer, nullable=False, server_default="0"),  # it is booked in; 0 = never
    Column("charged_nano", BigInteger, nullable=False, server_default="0"),
    Column("covered_tokens", BigInteger, nullable=False, server_default="0"),
    Column("operator_cost_nano", BigInteger, nullable=False, server_default="0"),
)


def _usage_sums(name: str, bucket: str, *, by_key: bool = True) -> Table:
    """Sums of usage of requests admitted in one hour, day or week (UTC): by key, model and currency, or
    by model and currency alone, whoever asked. In the order of time, so that what is written lies
    together, and what is asked of all; a project's own rows have an index.
    """
    whose = ("project_id", "key_id", "model_id") if by_key else ("model_id",)
    return Table(
        name,
        metadata,
        Column(bucket, BigInteger, primary_key=True),  # Unix hours, days, or weeks of 7 of them
        *(Column(each, BigInteger, primary_key=True) for each in whose),
        Column("currency", Text, primary_key=True),  # empty: of no price
        *([Column("tenant_id", BigInteger, nullable=False)] if by_key else []),
        Column("requests", BigInteger, nullable=False),
        Column("prompt_tokens", BigInteger, nullable=False),
        Column("cached_tokens", BigInteger, nullable=False),
        Column("completion_tokens", BigInteger, nullable=False),
        Column("reasoning_tokens", BigInteger, nullable=False),
        Column("unbilled_ms", BigInteger, nullable=False),
        Column("cost_nano", BigInteger, nullable=False),
        Column("charged_nano", BigInteger, nullable=False),  # corrections included
        *([Index(f"ix_{name}_project", "project_id", bucket)] if by_key else []),
        sqlite_with_rowid=False,
    )


usage_hours = _usage_sums("usage_hours", "hour")
usage_days = _usage_sums("usage_days", "day")
usage_weeks = _usage_sums("usage_weeks", "week")
model_hours = _usage_sums("model_hours", "hour", by_key=False)
model_days = _usage_sums("model_days", "day", by_key=False)
usage_quarantine = _table(
    "usage_quarantine",
    Column("request_id", Text, nullable=False),
    Column("payload_hash", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    UniqueConstraint("request_id", "payload_hash"),
)
engine_points = Table(
    "engine_points",
    metadata,
    Column("endpoint", Text, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("point", Text, nullable=False),  # JSON of gateway.metering.reconcile.Point
)
engine_probes = _table(
    "engine_probes",
    Column("endpoint", Text, nullable=False),
    Column("started_ms", BigInteger, nullable=False, index=True),
    Column("ended_ms", BigInteger),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
)
reconciliations = _table(
    "reconciliations",
    Column("endpoint", Text, nullable=False),
    Column("from_ms", BigInteger, nullable=False),
    Column("to_ms", BigInteger, nullable=False, index=True),
    Column("difference_tokens", BigInteger, nullable=False),
    Column("first_point", Text, nullable=False),  # JSON, as above
    Column("last_point", Text, nullable=False),
    Column("report", Text, nullable=False),  # JSON of gateway.metering.reconcile.Report
)

contracts = _table(
    "contracts",
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("kind", Text, nullable=False),  # free | payg | prepaid | commitment
    Column("currency", Text, nullable=False),
    Column("credit_line_nano", BigInteger, nullable=False),  # -1 = no bound
    Column("commitment_nano", BigInteger, nullable=False),
    Column("overage_ppm", BigInteger, nullable=False),
    Column("from_ms", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "version"),
)
throughput_terms = _table(
    "throughput_terms",
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False, index=True),
    Column("model_id", ForeignKey("models.id"), nullable=False),
    Column("tokens_per_minute", BigInteger, nullable=False),
    Column("hour_nano", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("overflow", Text, nullable=False),  # reject | spill
    Column("asked_ms", BigInteger, nullable=False),
    Column("accepted_ms", BigInteger, nullable=False),  # 0 = only asked for
    Column("until_ms", BigInteger, nullable=False),
)
throughput_use = Table(
    "throughput_use",
    metadata,
    Column("term_id", ForeignKey("throughput_terms.id"), primary_key=True),
    Column("minute", BigInteger, primary_key=True),  # Unix minutes
    Column("month", Integer, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)
commitment_use = Table(
    "commitment_use",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id"), primary_key=True),
    Column("month", Integer, primary_key=True),
    Column("nano", BigInteger, nullable=False),
)
grants = _table(
    "grants",
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False, index=True),
    Column("kind", Text, nullable=False),  # promotional | paid
    Column("currency", Text, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("left_nano", BigInteger, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),  # 0 = never
    Column("given_ms", BigInteger, nullable=False),
    Column("reference", Text, nullable=False),
    Column("entry_key", Text, nullable=False, unique=True),
    Column("reversed_ms", BigInteger, nullable=False, server_default="0"),
)
money_requests = Table(
    "money_requests",
    metadata,
    Column("idempotency_key", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),  # of what was asked
    Column("answer", Text, nullable=False),  # JSON
    Column("made_ms", BigInteger, nullable=False),
)
publishers = _table("publishers", Column("name", Text, nullable=False), _deleted_at())
publisher_shares = _table(
    "publisher_shares",
    Column("model_id", ForeignKey("models.id"), nullable=False, index=True),
    Column("publisher_id", ForeignKey("publishers.id"), nullable=False),
    Column("basis_points", Integer, nullable=False),
    Column("floor_nano_per_million", BigInteger, nullable=False),
    Column("from_ms", BigInteger, nullable=False),
    Column("until_ms", BigInteger, nullable=False),  # 0 = for ever
)
endpoint_costs = _table(
    "endpoint_costs",
    Column("endpoint_id", ForeignKey("endpoints.id"), nullable=False, index=True),
    Column("input_nano", BigInteger, nullable=False),  # per million tokens
    Column("output_nano", BigInteger, nullable=False),
    Column("hour_nano", BigInteger, nullable=False),  # of all its GPUs
    Column("currency", Text, nullable=False),
    Column("from_ms", BigInteger, nullable=False),
    Column("until_ms", BigInteger, nullable=False),  # 0 = for ever
)
#: Append-only. An entry is the rows of one ``entry_key``; they sum to zero.
postings = _table(
    "postings",
    Column("entry_key", Text, nullable=False),
    Column("line", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("tenant_id", BigInteger, nullable=False),
    Column("publisher_id", BigInteger, nullable=False),  # 0 = of no publisher
    Column("model_id", BigInteger, nullable=False),  # 0 = of no model
    Column("account", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("nano", BigInteger, nullable=False),  # debits positive
    Column("month", Integer, nullable=False),  # of the statement it is on
    Column("occurred_ms", BigInteger, nullable=False),
    Column("posted_ms", BigInteger, nullable=False),
    Column("reverses", Text, nullable=False),  # the entry that it undoes, or empty
    UniqueConstraint("entry_key", "line"),
)
#: Sums of postings, kept in the same transactions; a statement checks them against the postings.
account_sums = Table(
    "account_sums",
    metadata,
    Column("tenant_id", BigInteger, primary_key=True),
    Column("publisher_id", BigInteger, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("account", Text, primary_key=True),
    Column("month", Integer, primary_key=True),
    Column("nano", BigInteger, nullable=False),
)
#: What a tenant's statement lists: units and amounts by price and meter.
usage_lines = Table(
    "usage_lines",
    metadata,
    Column("tenant_id", BigInteger, primary_key=True),
    Column("month", Integer, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("model_id", BigInteger, primary_key=True),
    Column("price_id", BigInteger, primary_key=True),
    Column("meter", Text, primary_key=True),
    Column("units", BigInteger, nullable=False),
    Column("nano", BigInteger, nullable=False),
)
closings = Table(
    "closings",
    metadata,
    Column("kind", Text, primary_key=True),  # tenant | publisher
    Column("party_id", BigInteger, primary_key=True),
    Column("month", Integer, nullable=False),  # closed through
)
statements = _table(
    "statements",
    Column("number", BigInteger, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("party_id", BigInteger, nullable=False),
    Column("month", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    Column("document", LargeBinary, nullable=False),  # canonical JSON
    Column("signature", LargeBinary, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("closed_ms", BigInteger, nullable=False),
    UniqueConstraint("kind", "party_id", "month", "currency"),
)
#: Receivers of events: of usage (``sink``) or of alerts (``webhook``).
sinks = _table(
    "sinks",
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),  # sink | webhook
    Column("options", Text, nullable=False),  # JSON of gateway.store.sinks.Options
    Column("created_ms", BigInteger, nullable=False),
    _deleted_at(),
)
#: How far each has come. A cursor moves when the receiver has said that it has what lies before it.
sink_cursors = Table(
    "sink_cursors",
    metadata,
    Column("sink_id", ForeignKey("sinks.id"), primary_key=True),
    Column("record_id", BigInteger, nullable=False),  # of usage_records, sent up to here
    Column("posting_id", BigInteger, nullable=False),  # of corrections among postings
    Column("alert_id", BigInteger, nullable=False),  # of alerts
    Column("delivered", BigInteger, nullable=False),
    Column("delivered_ms", BigInteger, nullable=False),  # 0 = never
    Column("failures", Integer, nullable=False),  # in a row
    Column("retry_ms", BigInteger, nullable=False),  # not before
    Column("failure", Text, nullable=False),  # the last one's words
)
parked_events = _table(
    "parked_events",
    Column("sink_id", ForeignKey("sinks.id"), nullable=False),
    Column("event_id", Text, nullable=False),
    Column("event", Text, nullable=False),  # JSON of gateway.events.Event
    Column("reason", Text, nullable=False),
    Column("parked_ms", BigInteger, nullable=False),
    Column("queued", Integer, nullable=False, server_default="0"),  # 1 = to be sent again
    UniqueConstraint("sink_id", "event_id"),
)
#: Who does what only one host does at a time.
duties = Table(
    "duties",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("until_ms", BigInteger, nullable=False),
)
#: What each host has open at engines, when another one asks.
open_requests = Table(
    "open_requests",
    metadata,
    Column("host", Text, primary_key=True),
    Column("seen_ms", BigInteger, nullable=False),
    Column("asked", BigInteger, nullable=False, server_default="0"),
    Column("told", BigInteger, nullable=False, server_default="0"),
    Column("claims", Text, nullable=False, server_default="[]"),  # JSON, as last told
)
#: What webhooks are told. Append-only; an id is written once.
alerts = _table(
    "alerts",
    Column("event_id", Text, nullable=False, unique=True),
    Column("event", Text, nullable=False),  # JSON of gateway.events.Event
)
#: Of what may be raised and lowered again.
alert_states = Table(
    "alert_states",
    metadata,
    Column("subject", Text, primary_key=True),  # balance:3, endpoint:7
    Column("raised", Integer, nullable=False),
    Column("times", BigInteger, nullable=False),  # raised, ever
)

_named(tenants, "name")
_named(projects, "tenant_id", "name")
_named(keys, "project_id", "name")
_named(pools, "name")
_named(endpoints, "pool_id", "url")
_named(models, "name")
_named(publishers, "name")
_named(sinks, "name")
Index("ix_postings_tenant_month", postings.c.tenant_id, postings.c.month)
Index(
    "ix_postings_publisher_month",
    postings.c.publisher_id,
    postings.c.month,
    sqlite_where=text("publisher_id > 0"),
    postgresql_where=text("publisher_id > 0"),
)
Index("ix_usage_records_tenant_month", usage_records.c.tenant_id, usage_records.c.month)
_CORRECTS = text("kind IN ('reversal', 'reprice')")
Index(
    "ix_postings_corrections",
    postings.c.entry_key,
    sqlite_where=_CORRECTS,
    postgresql_where=_CORRECTS,
)
#: Charges that no request's settle took to the store. In these words, or SQLite has no index for them.
MOVES_BALANCES = text("kind IN ('reversal', 'reprice', 'shortfall', 'throughput')")
Index(
    "ix_postings_moves",
    postings.c.posted_ms,
    sqlite_where=MOVES_BALANCES,
    postgresql_where=MOVES_BALANCES,
)
