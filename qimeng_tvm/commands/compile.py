"""``qimeng compile MODEL -o OUT.so``: a whole model as a shared library."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

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
from qimeng_tvm.errors import UsageError

if TYPE_CHECKING:
    from qimeng_tvm.relax.report import PipelineReport

#: Functions that fell back and are listed for people; all of them are in the report.
_LISTED = 12


def compile_file(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT.so", help="The library to write.")],
    trials: Annotated[int, typer.Option(min=0, help="Measured trials over all functions beforehand.")] = 0,
    threads: Threads = None,
    database: Database = None,
    inputs: Inputs = None,
    dtype: Dtype = "f32",
    buckets: Buckets = None,
    winograd: Winograd = True,
    report: Annotated[Path | None, typer.Option(help="Write what became of every function here, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Compile a model; TVM's runtime loads and runs the library.

    Records of `qimeng tune MODEL` with the same --threads, --dtype, --input and --bucket are used.
    """
    from qimeng_tvm.compiled_model import check_library, compile_module

    check_library(out)
    _, say = teller()
    module, passes = model_and_passes(model, inputs, threads, database, trials, say, dtype, buckets, winograd)
    compiled = compile_module(module, passes)
    written = compiled.export(out)
    if report is not None:
        _write(report, compiled.report)
    if as_json:
        typer.echo(json.dumps({"model": str(model), "library": str(written), **compiled.report.to_json()}))
        return
    _show(compiled.report, written, Console(highlight=False))


def _write(path: Path, report: PipelineReport) -> None:
    from qimeng_tvm.files import write_atomic

    try:
        write_atomic(path, json.dumps(report.to_json(), indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write the report {path}: {error.strerror or error}") from error


def _show(report: PipelineReport, written: Path, console: Console) -> None:
    rules = Counter(f.rule or f.source for f in report.functions)
    tuned = sum(f.source == "record" for f in report.functions)
    rows: list[tuple[str, Any]] = [
        ("machine", f"{report.machine}, {report.threads} thread{'s' if report.threads > 1 else ''}"),
        ("functions", ", ".join(f"{name} {count}" for name, count in rules.most_common()) or "none"),
        ("records", f"{tuned} of {len(report.functions)} functions have one"),
        ("tensorized", f"{report.tensorized:.1%} of the contractions' operations"),
        ("seconds", ", ".join(f"{stage} {s:.1f}" for stage, s in report.seconds.items())),
        ("library", str(written)),
    ]
    for label, text in rows:
        console.print(f"[bold]{label:<11}[/]", end="")
        console.print(text, markup=False, soft_wrap=True)
    missed = unserved(report.functions)
    if missed:
        console.print("\n[bold]without a rule[/], on plain schedules:")
    for function in missed[:_LISTED]:
        console.print(why(function), markup=False, soft_wrap=True)
    if len(missed) > _LISTED:
        console.print(f"and {len(missed) - _LISTED} more: qimeng explain lists them", markup=False, soft_wrap=True)
