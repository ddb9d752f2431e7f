"""Limits of more dimensions, windows and scopes; a tenant's time zone."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """The table is made anew: SQLite cannot drop a constraint that has no name. The old one goes
    first, so that the new one's sequence has its name in PostgreSQL.
    """
    op.add_column("tenants", sa.Column("time_zone", sa.Text, nullable=False, server_default="UTC"))
    op.execute("CREATE TABLE limits_before AS SELECT * FROM limits")
    op.drop_table("limits")
    op.create_table(
        "limits",
        sa.Column("id", Id, primary_key=True, autoincrement=True),
        sa.Column("scope_kind", sa.Text, nullable=False),
        sa.Column("scope_id", sa.BigInteger, nullable=False),
        sa.Column("model_id", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("each", sa.Text, nullable=False, server_default=""),
        sa.Column("dimension", sa.Text, nullable=False),
        sa.Column("window", sa.Text, nullable=False, server_default="minute"),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.Column("burst", sa.BigInteger),
        sa.Column("cached_permille", sa.Integer, nullable=False, server_default="1000"),
        sa.Column("shadow", sa.Integer, nullable=False, server_default="0"),
        sa.Column("outage", sa.Text, nullable=False, server_default="fail_closed"),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("scope_kind", "scope_id", "model_id", "each", "dimension", "window"),
        sqlite_autoincrement=True,
    )
    op.execute(
        'INSERT INTO limits (scope_kind, scope_id, dimension, "window", value, burst, version) '
        "SELECT scope_kind, scope_id, dimension, "
        "CASE dimension WHEN 'concurrency' THEN 'now' ELSE 'minute' END, value, burst, version "
        "FROM limits_before ORDER BY id"
    )
    op.drop_table("limits_before")


def downgrade() -> None:
    """Back to a minute's limits of tenant, project and key; the others are lost."""
    op.execute("CREATE TABLE limits_after AS SELECT * FROM limits")
    op.drop_table("limits")
    op.create_table(
        "limits",
        sa.Column("id", Id, primary_key=True, autoincrement=True),
        sa.Column("scope_kind", sa.Text, nullable=False),
        sa.Column("scope_id", sa.BigInteger, nullable=False),
        sa.Column("dimension", sa.Text, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.Column("burst", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("scope_kind", "scope_id", "dimension"),
        sqlite_autoincrement=True,
    )
    op.execute(
        "INSERT INTO limits (scope_kind, scope_id, dimension, value, burst, version) "
        "SELECT scope_kind, scope_id, dimension, value, burst, version FROM limits_after "
        "WHERE model_id = 0 AND each = '' AND \"window\" IN ('minute', 'now') "
        "AND dimension IN ('requests', 'tokens', 'concurrency') ORDER BY id"
    )
    op.drop_table("limits_after")
    op.drop_column("tenants", "time_zone")
