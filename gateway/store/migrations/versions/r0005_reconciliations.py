"""Where each engine's next reconciliation begins, what probes cost, and what was found."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "engine_points",
        sa.Column("endpoint", sa.Text, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("point", sa.Text, nullable=False),
    )
    op.create_table(
        "engine_probes",
        sa.Column("id", Id, primary_key=True, autoincrement=True),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("prompt_tokens", sa.BigInteger),
        sa.Column("completion_tokens", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_engine_probes_started_ms", "engine_probes", ["started_ms"])
    op.create_table(
        "reconciliations",
        sa.Column("id", Id, primary_key=True, autoincrement=True),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("from_ms", sa.BigInteger, nullable=False),
        sa.Column("to_ms", sa.BigInteger, nullable=False),
        sa.Column("difference_tokens", sa.BigInteger, nullable=False),
        sa.Column("first_point", sa.Text, nullable=False),
        sa.Column("last_point", sa.Text, nullable=False),
        sa.Column("report", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_reconciliations_to_ms", "reconciliations", ["to_ms"])


def downgrade() -> None:
    op.drop_table("reconciliations")
    op.drop_table("engine_probes")
    op.drop_table("engine_points")
