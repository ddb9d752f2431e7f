"""What is watched for webhooks: whether it is raised, and below which balance a tenant is told of."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "alert_states",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("raised", sa.Integer, nullable=False),
        sa.Column("times", sa.BigInteger, nullable=False),
    )
    op.add_column("tenants", sa.Column("low_balance_nano", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("tenants", "low_balance_nano")
    op.drop_table("alert_states")
