"""``qimeng db``: the tuning records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from qimeng_tvm.commands.run import shown_value

if TYPE_CHECKING:
    from qimeng_tvm.search.curate import Entry
    from qimeng_tvm.search.records import Record, RecordDatabase

app = typer.Typer(no_args_is_help=True, help="Look after the tuning records.")

Records = Annotated[Path | None, typer.Option("--records", help="Folder of the tuning records (default: your own).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Text = Annotated[str, typer.Argument(help="Of the operator or machine, or the beginning of a workload's key.")]


def _open(folder: Path | None) -> RecordDatabase:
    from qimeng_tvm.api import default_database
    from qimeng_tvm.errors import UsageError
    from qimeng_tvm.search.records import RecordDatabase

    database = RecordDatabase(folder or default_database())
    if not database.load():
        raise UsageError(f"no tuning records in {database.folder}: make some with qimeng tune, or give --records")
    return database


def _found(database: RecordDatabase, text: str) -> tuple[Record, ...]:
    from qimeng_tvm.errors import UsageError
    from qimeng_tvm.search.curate import matching

    found = matching(database.load(), text)
    if not found:
        raise UsageError(f"no record is of {text!r}; `qimeng db ls` lists what there is")
    return found


@app.command("ls")
def list_records(text: Text = "", records: Records = None, as_json: AsJson = False) -> None:
    """List operators: where they were tuned, trials, the best speed, whether it was checked."""
    from qimeng_tvm.search.curate import entries

    listed = entries(_found(_open(records), text))
    if as_json:
        typer.echo(json.dumps([_entry_json(e) for e in listed]))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("operator", "threads", "machine", "rule", "trials", "failed", "GFLOP/s", "verified", "workload"):
        table.add_column(column, justify="right" if column in ("threads", "trials", "failed", "GFLOP/s") else "left")
    for e in listed:
        speed, verified = _best(e)
        table.add_row(
            e.operator, str(e.threads), e.machine, e.rule, str(e.trials), str(e.failed), speed, verified, e.key[0][:8]
        )
    Console(highlight=False).print(table)


def _best(entry: Entry) -> tuple[str, str]:
    if entry.best is None:
        return "-", "-"
    return f"{entry.best.gflops or 0:.1f}", "yes" if entry.best.verified else "no"


def _entry_json(entry: Entry) -> dict[str, object]:
    best = entry.best
    return {
        "operator": entry.operator,
        "machine": entry.machine,
        "rule": entry.rule,
        "threads": entry.threads,
        "trials": entry.trials,
        "failed": entry.failed,
        "workload": entry.key[0],
        "gflops": best.gflops if best is not None else None,
        "verified": best.verified if best is not None else None,
        "decisions": dict(best.decisions) if best is not None else None,
    }


@app.command()
def show(text: Text, records: Records = None, as_json: AsJson = False) -> None:
    """Show all trials of an operator, the fastest first, and why the others gave no time."""
    found = sorted(_found(_open(records), text), key=lambda r: (r.seconds_min is None, r.seconds_min or 0.0))
    if as_json:
        typer.echo(json.dumps([json.loads(r.to_line()) for r in found]))
        return
    console = Console(highlight=False)
    for r in found:
        speed = f"{r.gflops or 0:.1f} GFLOP/s" if r.status == "ok" else f"{r.status}: {r.error}"
        decisions = ", ".join(f"{k}={shown_value(v)}" for k, v in r.decisions.items())
        notes = f"{r.operator}, {r.threads} thread(s), {r.strategy}, {r.created}{', verified' if r.verified else ''}"
        console.print(f"{speed}  {decisions}  ({notes})", markup=False, soft_wrap=True)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to; one line of JSON a record.")],
    text: Annotated[str, typer.Option("--of", help="Only of this operator, machine or workload.")] = "",
    best: Annotated[bool, typer.Option("--best", help="Only the fastest of each operator.")] = False,
    records: Records = None,
) -> None:
    """Write records to a file."""
    from qimeng_tvm.search.curate import entries
    from qimeng_tvm.search.curate import export as write

    chosen = _found(_open(records), text)
    if best:
        chosen = tuple(e.best for e in entries(chosen) if e.best is not None)
    typer.echo(f"{write(chosen, file)} records in {file}")


@app.command()
def merge(
    folder: Annotated[list[Path], typer.Argument(help="Folders of records to add.")],
    records: Records = None,
) -> None:
    """Add the records of other folders; of a trial that several have, the fastest time stays."""
    from qimeng_tvm.api import default_database
    from qimeng_tvm.search.curate import merge as add
    from qimeng_tvm.search.records import RecordDatabase

    into = RecordDatabase(records or default_database())
    for one in folder:
        typer.echo(f"{add(into, one)} records from {one}")


@app.command()
def verify(records: Records = None) -> None:
    """Compile the best record of every operator of this machine again and check its numbers."""
    from qimeng_tvm.search.curate import verify as check

    found = check(_open(records), lambda text: typer.echo(text, err=True))
    wrong = [v for v in found if v.checked and not v.ok]
    skipped = sum(not v.checked for v in found)
    typer.echo(f"{sum(v.ok for v in found)} right, {len(wrong)} wrong, {skipped} not checked")
    if wrong:
        raise typer.Exit(1)


@app.command()
def prune(
    keep: Annotated[int, typer.Option(min=1, help="Timed records kept of each operator, the fastest.")] = 8,
    records: Records = None,
) -> None:
    """Drop records of other versions, and the slower ones; failures stay, so that they are not tried again."""
    from qimeng_tvm.search.curate import prune as drop

    database = _open(records)
    typer.echo(f"{drop(database, keep)} records dropped from {database.folder}")
