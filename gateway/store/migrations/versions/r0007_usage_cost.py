"""Whether a project's answers say what they cost."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column(
        "projects", sa.Column("usage_cost", sa.Integer, nullable=False, server_default="0")
    )


def downgrade() -> None:
    op.drop_column("projects", "usage_cost")
