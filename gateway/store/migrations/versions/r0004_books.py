"""Prices with conditions, contracts, grants, double entry, publishers, costs and statements.

A copy, as the first revision is, not an import of the schema of today.
"""

from alembic import op
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

revision = "0004"
down_revision = "0003"

books = MetaData()
Id = BigInteger().with_variant(Integer, "sqlite")
_LIVE = text("deleted_at IS NULL")
# What was there before, as far as it is referred to.
for _name in ("tenants", "models", "endpoints"):
    Table(_name, books, Column("id", Id, primary_key=True))


def _table(name: str, *columns: SchemaItem) -> Table:
    made: Table = Table(
        name,
        books,
        Column("id", Id, primary_key=True, autoincrement=True),
        *columns,
        sqlite_autoincrement=True,
    )
    return made


def _deleted_at() -> Column[int]:
    return Column("deleted_at", BigInteger)


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
    books,
    Column("term_id", ForeignKey("throughput_terms.id"), primary_key=True),
    Column("minute", BigInteger, primary_key=True),  # Unix minutes
    Column("month", Integer, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)
commitment_use = Table(
    "commitment_use",
    books,
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
    books,
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
account_sums = Table(
    "account_sums",
    books,
    Column("tenant_id", BigInteger, primary_key=True),
    Column("publisher_id", BigInteger, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("account", Text, primary_key=True),
    Column("month", Integer, primary_key=True),
    Column("nano", BigInteger, nullable=False),
)
usage_lines = Table(
    "usage_lines",
    books,
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
    books,
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

Index(
    "uq_publishers_live",
    publishers.c.name,
    unique=True,
    sqlite_where=_LIVE,
    postgresql_where=_LIVE,
)
Index("ix_postings_tenant_month", postings.c.tenant_id, postings.c.month)
Index(
    "ix_postings_publisher_month",
    postings.c.publisher_id,
    postings.c.month,
    sqlite_where=text("publisher_id > 0"),
    postgresql_where=text("publisher_id > 0"),
)

NEW = (
    contracts,
    throughput_terms,
    throughput_use,
    commitment_use,
    grants,
    money_requests,
    publishers,
    publisher_shares,
    endpoint_costs,
    postings,
    account_sums,
    usage_lines,
    closings,
    statements,
)
ADDED: dict[str, tuple[Column[object], ...]] = {
    "price_versions": (
        Column("until_ms", BigInteger, nullable=False, server_default="0"),
        Column("tenant_id", BigInteger, nullable=False, server_default="0"),
        Column("tier", Text, nullable=False, server_default="default"),
        Column("multiplier_ppm", BigInteger, nullable=False, server_default="1000000"),
        Column("time_zone", Text, nullable=False, server_default="UTC"),
        Column("conditional", Text, nullable=False, server_default="[]"),
    ),
    "usage_records": (
        Column("month", Integer, nullable=False, server_default="0"),
        Column("charged_nano", BigInteger, nullable=False, server_default="0"),
        Column("covered_tokens", BigInteger, nullable=False, server_default="0"),
        Column("operator_cost_nano", BigInteger, nullable=False, server_default="0"),
    ),
}


def upgrade() -> None:
    books.create_all(op.get_bind(), tables=list(NEW))
    for table, columns in ADDED.items():
        for column in columns:
            op.add_column(table, column)
    op.create_index("ix_usage_records_tenant_month", "usage_records", ["tenant_id", "month"])


def downgrade() -> None:
    op.drop_index("ix_usage_records_tenant_month", "usage_records")
    for table, columns in ADDED.items():
        for column in reversed(columns):
            op.drop_column(table, column.name)
    books.drop_all(op.get_bind(), tables=list(NEW))
