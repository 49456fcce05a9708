"""``qimeng explain MODEL``: what every function of a model became, why, and what it costs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qimeng_tvm.commands.model_options import (
    Buckets,
    Database,
    Dtype,
    Inputs,
    Model,
    Threads,
    Winograd,
    model_and_passes,
    unserved,
    why,
)
from qimeng_tvm.commands.telling import teller

if TYPE_CHECKING:
    from qimeng_tvm.relax.profile import FunctionTime, ModelTime
    from qimeng_tvm.relax.report import FunctionReport, PipelineReport


def explain(
    model: Model,
    threads: Threads = None,
    database: Database = None,
    inputs: Inputs = None,
    dtype: Dtype = "f32",
    buckets: Buckets = None,
    winograd: Winograd = True,
    time: Annotated[
        bool, typer.Option("--time/--no-time", help="Run the model on random inputs and time its functions.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Tell which rule serves every function of a model, from a record or not, what fell back and why, and the time."""
    from qimeng_tvm.compiled_model import compile_module
    from qimeng_tvm.relax.profile import random_weights

    _, say = teller()
    module, passes = model_and_passes(model, inputs, threads, database, 0, say, dtype, buckets, winograd)
    compiled = compile_module(random_weights(module), passes)
    if time:
        say("time")
    timed = compiled.profile() if time else None
    if as_json:
        typer.echo(json.dumps({"model": str(model), **_to_json(compiled.report, timed)}))
        return
    _show(compiled.report, timed, Console(highlight=False))


def _to_json(report: PipelineReport, timed: ModelTime | None) -> dict[str, Any]:
    times = {f.function.name: f for f in timed.functions} if timed is not None else {}
    plain = report.to_json()
    for function in plain["functions"]:
        found = times.get(function["name"])
        function["time"] = (
            {"seconds": found.seconds, "share": found.share, "gflops": found.gflops, "of_peak": found.of_peak}
            if found is not None
            else None
        )
    whole = {"run_seconds": timed.seconds, "unknown": timed.unknown} if timed is not None else {}
    return {**plain, **whole}


def _show(report: PipelineReport, timed: ModelTime | None, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    left = ("function", "operator", "rule", "family", "from")
    for column in ("function", "operator", "calls", "rule", "family", "from", "time", "us", "GFLOP/s", "of peak"):
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    times = {f.function.name: f for f in timed.functions} if timed is not None else {}
    for f in sorted(report.functions, key=lambda f: -times[f.name].seconds if f.name in times else 0.0):
        table.add_row(
            f.name,
            f.operator or "-",
            str(f.calls),
            f.rule or "-",
            f.family or "-",
            f.source,
            *_cells(times.get(f.name)),
        )
    console.print(table)
    _reasons("without a rule", "on plain schedules", unserved(report.functions), console)
    refused = [f for f in report.functions if f.why and f.rule]
    _reasons("not as recorded", "by the analytic decisions", refused, console)
    for symbol, seconds in (timed.unknown if timed is not None else {}).items():
        console.print(f"{symbol}: {seconds * 1e6:.1f} us, not of this pipeline", markup=False, soft_wrap=True)
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    text = f"{report.tensorized:.1%} of the contractions' operations are tensorized, {threads}"
    if timed is not None:
        flops = sum(f.calls * f.flops for f in report.functions if f.contraction)
        text += f", {timed.seconds * 1e3:.3f} ms a run, {flops / timed.seconds / 1e9:.1f} GFLOP/s"
    console.print(f"\n[bold]total[/] {text}", soft_wrap=True)


def _cells(found: FunctionTime | None) -> tuple[str, str, str, str]:
    if found is None:
        return "-", "-", "-", "-"
    speed = f"{found.gflops:.1f}" if found.gflops is not None else "-"
    of_peak = f"{found.of_peak:.0%}" if found.of_peak is not None else "-"
    return f"{found.share:.1%}", f"{found.seconds * 1e6:.1f}", speed, of_peak


def _reasons(title: str, what: str, functions: list[FunctionReport], console: Console) -> None:
    if functions:
        console.print(f"\n[bold]{title}[/], {what}:")
    for function in functions:
        console.print(why(function), markup=False, soft_wrap=True)
