"""Many rows into one table: COPY on PostgreSQL (a quarter of an INSERT's time), else INSERT.

In the caller's transaction either way, with the same errors. Not here: rows that may be there already.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, insert
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

#: SQLSTATE classes that speak of a row: data exception, integrity constraint violation.
_DATA, _INTEGRITY = "22", "23"


async def append(
    connection: AsyncConnection, table: Table, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Raises ``sqlalchemy.exc.IntegrityError`` or ``DataError`` for a row that is not to be had."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        await connection.execute(insert(table), named)
        return
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    try:
        await driver.copy_records_to_table(table.name, records=rows, columns=columns)
    except Exception as error:
        # The driver's errors, which SQLAlchemy does not see here; others pass as they are.
        state = str(getattr(error, "sqlstate", None) or "")
        if state.startswith(_INTEGRITY):
            raise IntegrityError(f"COPY {table.name}", None, error) from error
        if state.startswith(_DATA):
            raise DataError(f"COPY {table.name}", None, error) from error
        raise
