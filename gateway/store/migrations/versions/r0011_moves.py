"""What moved balances beside use, found by when it was posted."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

MOVES_BALANCES = sa.text("kind IN ('reversal', 'reprice', 'shortfall', 'throughput')")


def upgrade() -> None:
    op.create_index(
        "ix_postings_moves",
        "postings",
        ["posted_ms"],
        sqlite_where=MOVES_BALANCES,
        postgresql_where=MOVES_BALANCES,
    )


def downgrade() -> None:
    op.drop_index("ix_postings_moves", "postings")
