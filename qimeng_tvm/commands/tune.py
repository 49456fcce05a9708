"""``qimeng tune "<line>"`` and ``qimeng tune MODEL``: search decisions, and keep what was found in the records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from qimeng_tvm.commands.model import tune_file
from qimeng_tvm.commands.model_options import Buckets, Dtype, Inputs, buckets_of, shapes_of
from qimeng_tvm.commands.options import LLM_HELP, Spending
from qimeng_tvm.commands.run import shown_value
from qimeng_tvm.commands.telling import teller
from qimeng_tvm.errors import UsageError

if TYPE_CHECKING:
    from qimeng_tvm.search import TuneResult


def tune(
    line: Annotated[
        str,
        typer.Argument(
            metavar="LINE|MODEL",
            help='What to tune, e.g. "f32 GEMM 1024x1024x1024 on this CPU", or a model: *.onnx, *.pt2, *.json.',
        ),
    ],
    strategy: Annotated[str | None, typer.Option(help="mcts, evolve, evolutionary, random or default.")] = None,
    trials: Annotated[int, typer.Option(min=0, help="Measured trials, those of earlier runs included.")] = 32,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", help="Start no trial after so many seconds.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Cores to use (default: 1 for a line, all of them for a model).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    dtype: Dtype = "f32",
    inputs: Inputs = None,
    buckets: Buckets = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the tuning records.")] = None,
    llm: Annotated[
        str | None, typer.Option(help=f"Who proposes what to try (default: the analytic model): {LLM_HELP}.")
    ] = None,
    budget: Spending = None,
    rpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Measure on the machines behind this TVM RPC tracker (with --key)."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Key of the machines' servers at the tracker.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Measure decisions of the rules that serve an operator or a model; `qimeng run` and model builds find the records.

    What is interrupted goes on with the same command.
    """
    from qimeng_tvm.relax.sources import is_model
    from qimeng_tvm.search.tracker import Rpc

    tracker = Rpc.parse(rpc, key)
    if is_model(line):
        if tracker is not None:
            raise UsageError("--rpc is for one operator: a model is tuned on this machine")
        if llm is not None:
            raise UsageError("--llm is for one operator: without it the analytic model proposes what to try of each")
        tune_file(
            line,
            as_json=as_json,
            trials=trials,
            strategy=strategy,
            threads=threads,
            seed=seed,
            database=out,
            time_limit=time_limit,
            dtype=dtype,
            shapes=shapes_of(inputs),
            buckets=buckets_of(buckets),
        )
        return
    if dtype != "f32" or inputs or buckets:
        raise UsageError("--dtype, --input and --bucket are for a model: a line has its types and sizes in it")
    from qimeng_tvm.api import default_database
    from qimeng_tvm.search.progress import TuneBar
    from qimeng_tvm.tuner import tune_line

    console, say = teller()
    folder = out or default_database()
    with TuneBar(console=console) as bar:
        found = tune_line(
            line,
            trials=trials,
            strategy=strategy,
            threads=threads,
            seed=seed,
            database=folder,
            time_limit=time_limit,
            llm=llm,
            budget=budget,
            say=say,
            bar=None if as_json else bar,
            rpc=tracker,
        )
    if as_json:
        typer.echo(json.dumps(_to_json(found, folder)))
        return
    _show(found, folder, Console(highlight=False))


def _to_json(found: TuneResult, folder: Path) -> dict[str, Any]:
    best = found.results[0]
    return {
        "decisions": dict(best.values),
        "gflops": best.gflops or None,
        "trials": best.trials,
        "measured": best.measured,
        "failed": best.failed,
        "seconds": found.seconds,
        "stopped": found.stopped,
        "records": str(folder),
    }


def _show(found: TuneResult, folder: Path, console: Console) -> None:
    best = found.results[0]
    rows = [
        ("rule", f"{best.task.rule.name}@{best.task.rule.version}"),
        ("decisions", ", ".join(f"{k}={shown_value(v)}" for k, v in best.values.items())),
        ("speed", f"{best.gflops:.1f} GFLOP/s" if best.gflops else "not measured"),
        ("trials", f"{best.trials} recorded, {best.measured} in this run, {best.failed} without a time"),
        ("seconds", f"{found.seconds:.1f}"),
        ("records", str(folder)),
    ]
    if found.stopped:
        rows.append(("stopped", f"{found.stopped}: {found.resume}"))
    for label, text in rows:
        console.print(f"[bold]{label:<10}[/]", end="")
        console.print(text, markup=False, soft_wrap=True)
