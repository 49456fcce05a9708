"""What the commands of ``qimeng bench`` share: lists in options, and how a result is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from qimeng_tvm.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from qimeng_tvm.bench.result import BenchResult

#: Columns of a table where there is no terminal to ask.
WIDE = 200


def words(text: str) -> list[str]:
    """Return the words of a comma separated option."""
    return [word.strip() for word in text.split(",") if word.strip()]


def counts(text: str, option: str) -> tuple[int, ...]:
    """Return the counts of a comma separated option.

    Raises
    ------
    UsageError
        If one is not a count.
    """
    for word in words(text):
        if not word.isdigit() or int(word) < 1:
            raise UsageError(f"{option}: {word!r} is not a count; write e.g. 1,2")
    return tuple(int(word) for word in words(text))


def show_result(result: BenchResult, json_file: Path | None, table: Table, lines: Sequence[str]) -> None:
    """Write a result as JSON where that is asked for, and print its table and lines, unless the JSON is printed."""
    if json_file is not None and str(json_file) == "-":
        typer.echo(json.dumps(result.to_json()))
        return
    if json_file is not None:
        result.write(json_file)
    out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    out.print(table)
    for line in lines:
        out.print(line, soft_wrap=True, markup=False)
