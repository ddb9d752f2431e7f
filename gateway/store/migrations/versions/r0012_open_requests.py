"""What other hosts have open at engines."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "open_requests",
        sa.Column("host", sa.Text(), primary_key=True),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("asked", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("told", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("claims", sa.Text(), nullable=False, server_default="[]"),
    )


def downgrade() -> None:
    op.drop_table("open_requests")
