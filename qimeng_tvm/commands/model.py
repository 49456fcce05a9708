"""``qimeng tune MODEL``: the operators of a whole model share the trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from qimeng_tvm.commands.run import shown_value
from qimeng_tvm.commands.telling import teller

if TYPE_CHECKING:
    from qimeng_tvm.model_tuning import ModelResult, TunedFunction


def tune_file(path: str, *, as_json: bool, **options: Any) -> None:
    """Tune a model's file and print what was found; ``options`` are those of ``tune_model``."""
    from qimeng_tvm.model_tuning import tune_model
    from qimeng_tvm.search.progress import TuneBar

    console, say = teller()
    with TuneBar(Path(path).name, console) as bar:
        found = tune_model(path, say=say, bar=None if as_json else bar, **options)
    if as_json:
        typer.echo(json.dumps(to_json(path, found)))
        return
    _show(found, Console(highlight=False))


def to_json(path: str, found: ModelResult) -> dict[str, Any]:
    """Return what was found as plain data."""
    return {
        "model": path,
        "functions": [_function(f) for f in found.functions],
        "not_served": [{"function": f.name, "calls": f.calls, "why": f.why} for f in found.others],
        "trials": found.tuning.trials,
        "measured": found.tuning.measured,
        "seconds": found.tuning.seconds,
        "stopped": found.tuning.stopped,
        "records": str(found.records),
    }


def _function(found: TunedFunction) -> dict[str, Any]:
    result = found.result
    return {
        "function": found.name,
        "operator": found.operator,
        "calls": found.calls,
        "rule": f"{result.task.rule.name}@{result.task.rule.version}",
        "decisions": dict(result.values),
        "gflops": result.gflops or None,
        "seconds": found.seconds or None,
        "share": found.share or None,
        "trials": result.trials,
        "measured": result.measured,
        "failed": result.failed,
    }


def _show(found: ModelResult, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("function", "operator", "calls", "GFLOP/s", "trials", "time", "decisions"):
        number = column in ("calls", "GFLOP/s", "trials", "time")
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for f in found.functions:
        speed = f"{f.result.gflops:.1f}" if f.result.gflops else "-"
        share = f"{f.share:.0%}" if f.share else "-"
        decisions = ", ".join(f"{k}={shown_value(v)}" for k, v in f.result.values.items())
        table.add_row(f.name, f.operator, str(f.calls), speed, str(f.result.trials), share, decisions)
    console.print(table)
    if found.others:
        console.print("\n[bold]no rule[/], TVM's own schedules serve these:")
        for other in found.others:
            console.print(f"{other.name} (x{other.calls}): {other.why}", markup=False, soft_wrap=True)
    tuning = found.tuning
    rows = [
        ("trials", f"{tuning.trials} recorded, {tuning.measured} in this run"),
        ("seconds", f"{tuning.seconds:.1f}"),
        ("records", str(found.records)),
    ]
    if tuning.stopped:
        rows.append(("stopped", f"{tuning.stopped}: {tuning.resume}"))
    console.print()
    for label, text in rows:
        console.print(f"[bold]{label:<10}[/]", end="")
        console.print(text, markup=False, soft_wrap=True)
