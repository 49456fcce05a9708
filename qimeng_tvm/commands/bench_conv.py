"""``qimeng bench conv``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qimeng_tvm.commands.bench_output import counts, show_result, words
from qimeng_tvm.commands.telling import teller
from qimeng_tvm.errors import UsageError


def conv(
    suites: Annotated[str, typer.Option(help="Any of chosen,resnet50,mobilenet_v2.")] = "chosen,resnet50,mobilenet_v2",
    threads: Annotated[str, typer.Option(help="Thread counts, e.g. 1,2.")] = "1",
    peers: Annotated[str | None, typer.Option(help="Libraries, comma separated ('none' for ours alone).")] = None,
    trials: Annotated[int, typer.Option(min=0, help="Trials a case for us.")] = 0,
    cases: Annotated[str | None, typer.Option(help="Only cases whose name contains this.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats.")] = False,
    database: Annotated[Path | None, typer.Option(help="Folder of the tuning records.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to FILE ('-': standard output).")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="File that an interrupted run continues from.")] = None,
) -> None:
    """Convolutions: ours beside oneDNN with plain and with blocked operands, interleaved."""
    from qimeng_tvm.bench import timing
    from qimeng_tvm.bench.conv_data import placed
    from qimeng_tvm.bench.conv_ours import QimengConv
    from qimeng_tvm.bench.conv_peers import conv_peers
    from qimeng_tvm.bench.conv_suite import conv_suite
    from qimeng_tvm.bench.run import bench_cases
    from qimeng_tvm.bench.table import rich_table, summary_lines
    from qimeng_tvm.hardware import host, measured

    suite = [c for c in conv_suite(words(suites)) if cases is None or cases in c.name]
    if not suite:
        raise UsageError(f"no case of these suites has {cases!r} in its name, such as {conv_suite()[0].name}")
    others = () if peers == "none" else conv_peers(words(peers) if peers else None)
    _, say = teller()
    result = bench_cases(
        [QimengConv(trials=trials, database=database), *others],
        suite,
        placed,
        counts(threads, "--threads"),
        timing.QUICK if quick else timing.FULL,
        lambda done, total, rows: say(f"{done}/{total} {rows[0].case} {rows[0].threads}t"),
        hardware=measured(host()),
        partial=resume,
    )
    show_result(result, json_file, rich_table(result), summary_lines(result))
