"""``qimeng run "<line>"``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from qimeng_tvm.commands.options import LLM_HELP, Rounds, Spending

if TYPE_CHECKING:
    from qimeng_tvm.result import RunResult


def run(
    line: Annotated[str, typer.Argument(help='What to make, e.g. "bf16 GEMM 1024x1024x1024 on this CPU".')],
    trials: Annotated[
        int | None, typer.Option(help="Measured trials (default 32; 0 takes the analytic decisions).")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Cores to use (default 1).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the artifact (default qimeng-out/<name>).")] = None,
    database: Annotated[Path | None, typer.Option(help="Folder of the tuning records.")] = None,
    peers: Annotated[str | None, typer.Option(help="Libraries to compare with: names, 'all' or 'none'.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    llm: Annotated[
        str | None,
        typer.Option(help=f"Who writes a micro-kernel when none fits: {LLM_HELP}."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Have a micro-kernel written though one fits.")] = False,
    rounds: Rounds = 4,
    budget: Spending = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Make the operator that a line asks for: tune, compile, check, measure, and write it to a folder."""
    from qimeng_tvm.api import run as make
    from qimeng_tvm.llm import choose_client
    from qimeng_tvm.llm.settings import budget_of
    from qimeng_tvm.request import describe, parse
    from qimeng_tvm.search.progress import TuneBar

    console = Console(stderr=True, highlight=False)
    request = parse(line)
    if not as_json:
        console.print(f"[bold]request[/]   {describe(request)}")
    limits = budget_of(budget)
    client = choose_client(llm, lambda text: console.print(text, markup=False)) if llm is not None else None
    with TuneBar(console=console) as bar:
        result = make(
            request,
            trials=trials,
            threads=threads,
            out=out,
            database=database,
            peers=_peers(peers),
            seed=seed,
            llm=client,
            fresh=fresh,
            rounds=rounds,
            budget=limits,
            progress=None if as_json else lambda text: console.print(f"[dim]{text} ...[/]"),
            bar=None if as_json else bar,
        )
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        show(result, Console(highlight=False))
    if not (result.verified and result.audited):
        raise typer.Exit(1)


def _peers(text: str | None) -> tuple[str, ...] | None:
    from qimeng_tvm.bench.systems import default_peers

    if text is None:
        return None
    if text == "none":
        return ()
    if text == "all":
        return tuple(p.name for p in default_peers())
    return tuple(name.strip() for name in text.split(",") if name.strip())


def show(result: RunResult, console: Console) -> None:
    """Print a result for people."""
    from qimeng_tvm.request import describe

    machine, numbers, code = result.hardware, result.numbers, result.code
    found = ", ".join(f"{n} {m.split('|')[-1]}" for m, n in code.counts.items())
    right = f"{numbers.cases} cases, largest error {numbers.error_ratio:.2f} of the bound"
    rows = [
        ("request", describe(result.request)),
        (
            "hardware",
            f"{machine.name}, {machine.cpu}, {result.threads} of {machine.cores} cores, "
            f"peak {result.peak_gflops:.1f} GFLOP/s",
        ),
        ("rule", f"{result.rule}, family {result.family}"),
        ("decisions", ", ".join(f"{k}={shown_value(v)}" for k, v in result.decisions.items() if k != "family")),
        ("trials", f"{result.trials} measured" if result.trials else "none: analytic decisions"),
        (
            "speed",
            f"[bold]{result.gflops:.1f} GFLOP/s[/], {result.pct_of_peak:.1f} % of peak, {_time(result.seconds)} a call",
        ),
        ("verified", _verdict(result.verified, right, numbers.message or result.timing.message)),
        (
            "audited",
            _verdict(result.audited, f"{found} in the inner loop, {code.spills} spills", "; ".join(code.problems)),
        ),
    ]
    if result.timing.kind == "suspicious":
        rows.append(("note", result.timing.message))
    for label, text in rows:
        console.print(f"[bold]{label:<10}[/]{text}", soft_wrap=True)
    if result.peers:
        console.print(_peer_table(result))
    console.print(f"[bold]{'artifact':<10}[/]{result.artifact}", soft_wrap=True)


def shown_value(value: int | str) -> str:
    """Return a decision's value for people."""
    return "all" if isinstance(value, int) and value >= 1 << 30 else str(value)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def _verdict(ok: bool, good: str, bad: str) -> str:
    return f"[green]yes[/], {good}" if ok else f"[red]NO[/], {bad}"


def _peer_table(result: RunResult) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, justify in (("library", "left"), ("GFLOP/s", "right"), ("ours / it", "right"), ("note", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_row("qimeng", f"{result.gflops:.1f}", "", "")
    for peer in result.peers:
        if peer.gflops:
            table.add_row(peer.name, f"{peer.gflops:.1f}", f"{result.gflops / peer.gflops:.2f}", peer.note)
        else:
            table.add_row(peer.name, "-", "", peer.note)
    return table
