"""Sums of usage by hour and day, filled from the ledger as it is."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

SUMMED = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "unbilled_ms",
    "cost_nano",
    "charged_nano",
)
CORRECTS = sa.text("kind IN ('reversal', 'reprice')")
#: As gateway.store.rollups sums them; written out, because a migration outlives what it was made of.
FILL = """
    INSERT INTO usage_{bucket}s (tenant_id, project_id, key_id, model_id, {bucket}, currency,
        requests, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, unbilled_ms,
        cost_nano, charged_nano)
    SELECT tenant_id, project_id, key_id, model_id, bucket, currency, sum(requests),
        sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(reasoning_tokens),
        sum(unbilled_ms), sum(cost_nano), sum(charged_nano)
    FROM (
        SELECT tenant_id, project_id, key_id, model_id, started_ms / {width} AS bucket, currency,
            1 AS requests, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens,
            unbilled_ms, cost_nano, charged_nano
        FROM usage_records
        UNION ALL
        SELECT r.tenant_id, r.project_id, r.key_id, r.model_id, r.started_ms / {width}, p.currency,
            0, 0, 0, 0, 0, 0, 0, p.nano
        FROM postings AS p JOIN usage_records AS r ON r.request_id = substr(
            rtrim(p.entry_key, '0123456789'), CASE p.kind WHEN 'reversal' THEN 10 ELSE 9 END,
            length(rtrim(p.entry_key, '0123456789'))
                - CASE p.kind WHEN 'reversal' THEN 10 ELSE 9 END)
        WHERE p.kind IN ('reversal', 'reprice')
            AND p.account IN ('customer_prepaid', 'receivable', 'promotional')
    ) AS entered
    GROUP BY tenant_id, project_id, key_id, model_id, bucket, currency
"""


def upgrade() -> None:
    op.create_index(
        "ix_postings_corrections",
        "postings",
        ["entry_key"],
        sqlite_where=CORRECTS,
        postgresql_where=CORRECTS,
    )
    for bucket, width in (("hour", 3_600_000), ("day", 86_400_000)):
        op.create_table(
            f"usage_{bucket}s",
            sa.Column("project_id", sa.BigInteger, primary_key=True),
            sa.Column(bucket, sa.BigInteger, primary_key=True),
            sa.Column("key_id", sa.BigInteger, primary_key=True),
            sa.Column("model_id", sa.BigInteger, primary_key=True),
            sa.Column("currency", sa.Text, primary_key=True),
            sa.Column("tenant_id", sa.BigInteger, nullable=False),
            *(sa.Column(name, sa.BigInteger, nullable=False) for name in SUMMED),
            sqlite_with_rowid=False,
        )
        op.create_index(f"ix_usage_{bucket}s_{bucket}", f"usage_{bucket}s", [bucket])
        op.execute(FILL.format(bucket=bucket, width=width))


def downgrade() -> None:
    op.drop_table("usage_days")
    op.drop_table("usage_hours")
    op.drop_index("ix_postings_corrections", "postings")
