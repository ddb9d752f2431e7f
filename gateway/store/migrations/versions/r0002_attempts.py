"""What each record's attempts were, engine time that billed nothing, and why a record was put aside."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "usage_records", sa.Column("attempt_log", sa.Text, nullable=False, server_default="[]")
    )
    op.add_column(
        "usage_records",
        sa.Column("unbilled_ms", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.add_column(
        "usage_quarantine", sa.Column("reason", sa.Text, nullable=False, server_default="")
    )


def downgrade() -> None:
    op.drop_column("usage_quarantine", "reason")
    op.drop_column("usage_records", "unbilled_ms")
    op.drop_column("usage_records", "attempt_log")
