"""``qimeng bench``: matrix products and searches here, convolutions and models in files of their own."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qimeng_tvm.commands import bench_conv, bench_models
from qimeng_tvm.commands.bench_output import WIDE, counts, show_result, words
from qimeng_tvm.commands.options import LLM_HELP
from qimeng_tvm.commands.telling import teller
from qimeng_tvm.errors import UsageError

if TYPE_CHECKING:
    from qimeng_tvm.bench.entrant import Entrant
    from qimeng_tvm.bench.search import Advise
    from qimeng_tvm.generate.adviser import Adviser
    from qimeng_tvm.generate.proposal import Tuned

app = typer.Typer(help="Benchmarks against the libraries present.", no_args_is_help=True, rich_markup_mode=None)
app.command()(bench_conv.conv)
app.command()(bench_models.models)


@app.callback()
def _group() -> None:
    """Benchmarks against the libraries present."""


@app.command()
def gemm(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases and repeats.")] = False,
    threads: Annotated[str, typer.Option(help="Thread counts, e.g. 1,2.")] = "1",
    dtype: Annotated[str, typer.Option(help="Any of f32,bf16,u8s8.")] = "f32,bf16,u8s8",
    peers: Annotated[str | None, typer.Option(help="Libraries, comma separated ('none' for ours alone).")] = None,
    trials: Annotated[int, typer.Option(help="Trials a case for us (and for TVM MetaSchedule, when asked for).")] = 0,
    cases: Annotated[str | None, typer.Option(help="Only cases whose name contains this.")] = None,
    database: Annotated[Path | None, typer.Option(help="Folder of the tuning records.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to FILE ('-': standard output).")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="File that an interrupted run continues from.")] = None,
) -> None:
    """Matrix products: ours beside OpenBLAS, oneDNN, MKL, BLIS, ONNX Runtime and TVM, interleaved."""
    from qimeng_tvm.api import default_database
    from qimeng_tvm.bench.ours import Qimeng, analytic, tuned
    from qimeng_tvm.bench.result import UNTUNED
    from qimeng_tvm.bench.run import bench_gemm
    from qimeng_tvm.bench.suite import gemm_suite
    from qimeng_tvm.bench.systems import default_peers
    from qimeng_tvm.bench.table import rich_table, summary_lines
    from qimeng_tvm.hardware import host, measured

    console = Console(stderr=True, highlight=False)
    machine = measured(host())
    suite = [c for c in gemm_suite(tuple(words(dtype)), quick) if cases is None or cases in c.name]
    if not suite:
        raise UsageError(
            f"no case has {cases!r} in its name; the suite has {', '.join(sorted({c.name for c in gemm_suite()}))}"
        )
    choice = tuned(database or default_database(), trials) if trials else analytic
    others = () if peers == "none" else default_peers(words(peers) if peers else None)
    # Beside tuned operators those that were not: what the measuring was worth.
    own = [Qimeng(machine, choice), *([Qimeng(machine, analytic, name=UNTUNED)] if trials else [])]
    result = bench_gemm(
        [*own, *others],
        suite,
        counts(threads, "--threads"),
        quick,
        lambda done, total, rows: console.print(
            f"[dim]{done}/{total} {rows[0].case} {rows[0].dtype} {rows[0].threads}t[/]"
        ),
        hardware=machine,
        partial=resume,
    )
    show_result(result, json_file, rich_table(result), summary_lines(result))


@app.command()
def search(
    systems: Annotated[
        str,
        typer.Option(
            help="Strategies, comma separated, each less some of its parts where '-PART' says so: mcts, mcts-backup, "
            "evolve, random, default, metaschedule (TVM's own), ... 'none' runs nothing."
        ),
    ] = "mcts,evolve,random",
    trials: Annotated[int, typer.Option(min=1, help="Of each run.")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each strategy and operator.")] = 5,
    operators: Annotated[
        str | None, typer.Option(help="Lines, ';' between them (default: seven matrix products).")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to FILE ('-': standard output).")
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Folder for the curves as pictures.")] = None,
    settle: Annotated[
        bool, typer.Option("--settle", help="At last time what all runs ended with again, side by side.")
    ] = False,
    resume: Annotated[Path | None, typer.Option(help="File that an interrupted run continues from.")] = None,
    curves: Annotated[
        list[Path] | None, typer.Option(help="Tell of this file's finished runs too (may be repeated).")
    ] = None,
    llm: Annotated[
        str | None, typer.Option(help=f"Who advises systems with +llm, such as mcts+llm: {LLM_HELP}.")
    ] = None,
    transcripts: Annotated[Path | None, typer.Option(help="Folder for the conversations with that model.")] = None,
) -> None:
    """Strategies of tuning: how good the best schedule is after so many trials."""
    from qimeng_tvm.bench.curves import read_curves
    from qimeng_tvm.bench.search import OPERATORS, run_search_bench
    from qimeng_tvm.bench.search_report import Report
    from qimeng_tvm.bench.settle import settled
    from qimeng_tvm.bench.table import search_lines, search_table, settled_lines
    from qimeng_tvm.files import write_atomic
    from qimeng_tvm.hardware import host, measured

    _, say = teller()
    lines = None if operators is None else tuple(x.strip() for x in operators.split(";") if x.strip())
    found = [curve for path in curves or () for curve in read_curves(path) if lines is None or curve.operator in lines]
    if systems != "none":
        ran = run_search_bench(
            words(systems), measured(host()), operators=lines or OPERATORS, trials=trials, seeds=seeds,
            partial=resume, advise=_advise(llm, transcripts, say) if llm is not None else None, say=say,
        )  # fmt: skip
        found = [*ran, *found]
    if not found:
        raise UsageError("there is no run to tell of: name systems, or files of runs with --curves")
    report = Report.of(found)
    if svg is not None:
        from qimeng_tvm.bench.search_plots import write_plots

        write_plots(report.curves, svg)
    final = Report.of(settled(report.curves, measured(host()), say)) if settle else None
    text = json.dumps({**report.to_json(), "settled": final.to_json() if final is not None else None})
    if json_file is not None and str(json_file) == "-":
        typer.echo(text)
        return
    if json_file is not None:
        write_atomic(json_file, text + "\n")
    out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    out.print(search_table(report.standings))
    for line in search_lines(report):
        out.print(line, soft_wrap=True, markup=False)
    if final is not None:
        out.print("\nwhat the runs ended with, timed again side by side:")
        for line in settled_lines(final):
            out.print(line, soft_wrap=True, markup=False)


def _advise(llm: str, folder: Path | None, say: Callable[[str], None]) -> Advise:
    """Return what makes the adviser of a run: a conversation of its own, in a file named after operator and seed."""

    def advise(tuned: Tuned, entrant: Entrant, seed: int) -> Adviser:
        from qimeng_tvm.tuner import adviser_for

        name = re.sub(r"[^a-z0-9]+", "-", tuned.line.lower()).strip("-")
        told = "" if entrant.history else ".blind"
        path = folder / f"{name}{told}.{seed}.json" if folder is not None else None
        return adviser_for(tuned, llm, history=entrant.history, path=path, say=say)

    return advise
