"""Sums of usage in the order of time, and more of them: by week, and of models whoever asked."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

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
OF_KEY = ("project_id", "key_id", "model_id")
#: New table: bucket, whose, the old one that it is summed from, and how many of its buckets are one.
COARSER = (
    ("usage_weeks", "week", OF_KEY, "usage_days", "day", 7),
    ("model_hours", "hour", ("model_id",), "usage_hours", "hour", 1),
    ("model_days", "day", ("model_id",), "usage_days", "day", 1),
)


#: Names and numbers of this file alone.
KEEP = "CREATE TABLE {name}_before AS SELECT {columns} FROM {name}"
BRING_BACK = """
    INSERT INTO {name} ({columns}) SELECT {columns} FROM {name}_before
    ORDER BY {bucket}, project_id, key_id, model_id, currency
"""
ADD_UP = """
    INSERT INTO {name} ({bucket}, {ids}, {summed}) SELECT {of} / {count}, {ids}, {sums} FROM {finer}
    GROUP BY {of} / {count}, {ids} ORDER BY {of} / {count}, {ids}
"""


def upgrade() -> None:
    for bucket in ("hour", "day"):
        name, columns = f"usage_{bucket}s", ", ".join((*_group(bucket, OF_KEY), *SUMMED))
        op.execute(KEEP.format(name=name, columns=columns))
        op.drop_table(name)
        _make(name, bucket, OF_KEY)
        op.execute(BRING_BACK.format(name=name, columns=columns, bucket=bucket))
        op.drop_table(f"{name}_before")
    for name, bucket, whose, finer, of, count in COARSER:
        _make(name, bucket, whose)
        op.execute(
            ADD_UP.format(
                name=name,
                bucket=bucket,
                ids=", ".join(_group(bucket, whose)[1:]),
                summed=", ".join(SUMMED),
                sums=", ".join(f"sum({each})" for each in SUMMED),
                finer=finer,
                of=of,
                count=count,
            )
        )


def downgrade() -> None:
    for name, *_ in COARSER:
        op.drop_table(name)


def _group(bucket: str, whose: tuple[str, ...]) -> list[str]:
    of_tenant = ["tenant_id"] if "project_id" in whose else []
    return [bucket, *whose, "currency", *of_tenant]


def _make(name: str, bucket: str, whose: tuple[str, ...]) -> None:
    by_key = "project_id" in whose
    op.create_table(
        name,
        sa.Column(bucket, sa.BigInteger, primary_key=True),
        *(sa.Column(each, sa.BigInteger, primary_key=True) for each in whose),
        sa.Column("currency", sa.Text, primary_key=True),
        *([sa.Column("tenant_id", sa.BigInteger, nullable=False)] if by_key else []),
        *(sa.Column(each, sa.BigInteger, nullable=False) for each in SUMMED),
        sqlite_with_rowid=False,
    )
    if by_key:
        op.create_index(f"ix_{name}_project", name, ["project_id", bucket])
