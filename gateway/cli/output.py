"""What commands print: one JSON value, or a plain table; and the one way they fail.

Not here: colours. Output is read by people and pipes alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import msgspec

EXIT_FAILED = 1
EXIT_USAGE = 2


class CommandFailed(Exception):
    """One sentence for standard error that says what to do; ``code`` is the exit status."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code


def print_json(value: object) -> None:
    """One line."""
    click.echo(msgspec.json.encode(value).decode())


def print_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], empty: str) -> None:
    """Columns by name, numbers to the right; ``empty`` is said when there is no row."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    if not cells:
        click.echo(empty)
        return
    heads = [column.replace("_", " ") for column in columns]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for line in (heads, *cells):
        click.echo("  ".join(_pad(*each) for each in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def _pad(text: str, width: int) -> str:
    is_number = text.replace(".", "", 1).lstrip("-").isdigit()
    return text.rjust(width) if is_number else text.ljust(width)
