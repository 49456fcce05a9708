"""The benchmark's result as tables: one for the terminal, one in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import geometric_mean

from rich.table import Table

from qimeng_tvm.bench.against import stock_summary
from qimeng_tvm.bench.efficiency import Standing, summary
from qimeng_tvm.bench.entrant import STOCK
from qimeng_tvm.bench.result import BenchResult, Row
from qimeng_tvm.bench.search_report import Report


def _cell(row: Row | None, best: Row | None) -> tuple[str, bool]:
    """Return the text of a cell, and whether it is the best of its line."""
    if row is None:
        return "", False
    if row.gflops is None:
        return ("failed" if row.extra.get("error") else "-"), False
    text = f"{row.gflops:.1f}" if row.gflops < 100 else f"{row.gflops:.0f}"
    return (f"({text}) wrong" if row.extra.get("wrong") else text), row is best


def _lines(result: BenchResult) -> list[tuple[list[str], list[tuple[str, bool]], str]]:
    """One line a group: its key, the cells, and our ratio to the best peer."""
    systems = result.systems()
    ratios = {(d.case, d.dtype, d.threads): d.ratio for d in result.duels()}
    lines = []
    for key, members in result.groups().items():
        right = [r for r in members.values() if r.counts]
        best = max(right, key=lambda r: r.gflops or 0.0) if right else None
        ratio = ratios.get(key)
        cells = [_cell(members.get(name), best) for name in systems]
        lines.append((list(map(str, key)), cells, "" if ratio is None else f"{ratio:.2f}"))
    return lines


def _has_ours(result: BenchResult) -> bool:
    return any(row.system == result.ours for row in result.rows)


def rich_table(result: BenchResult) -> Table:
    """Return GFLOP/s by case and system; the best right answer in bold, a wrong one in brackets."""
    table = Table(title="GFLOP/s, median of interleaved repeats")
    for heading in ("case", "dtype", "threads"):
        table.add_column(heading, no_wrap=True)
    for name in result.systems():
        table.add_column(name, justify="right")
    if _has_ours(result):
        table.add_column("vs best peer", justify="right")
    for key, cells, ratio in _lines(result):
        texts = [f"[bold]{text}[/bold]" if best else text for text, best in cells]
        table.add_row(*key, *texts, *([ratio] if _has_ours(result) else []))
    return table


def markdown_table(result: BenchResult) -> str:
    """Return the same as a Markdown table."""
    ratio_column = ["vs best peer"] if _has_ours(result) else []
    systems = result.systems()
    rows = [
        _markdown(["case", "dtype", "threads", *systems, *ratio_column]),
        _markdown(["---", "---", "---:", *["---:"] * (len(systems) + len(ratio_column))]),
    ]
    for key, cells, ratio in _lines(result):
        texts = [f"**{text}**" if best else text for text, best in cells]
        rows.append(_markdown([*key, *texts, *([ratio] if ratio_column else [])]))
    return "\n".join(rows) + "\n"


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def summary_lines(result: BenchResult) -> list[str]:
    """Return the summary in words, every loss included."""
    summary = result.summary()
    lines = []
    for threads, standing in summary["by_threads"].items():
        mean = standing["geomean_vs_best_peer"]
        lines.append(
            f"{threads} thread{'s' if threads != '1' else ''}: {standing['cases']} cases, geomean vs best peer "
            + (f"{mean:.3f}" if mean is not None else "-")
            + f", min {standing['min_vs_best_peer']:.3f}, {standing['losses']} lost"
        )
    for loss in result.losses():
        text = f"{loss.ratio:.3f} of {loss.best_peer}" if loss.ratio else f"no right answer ({loss.note})"
        lines.append(f"lost: {loss.case} {loss.dtype} at {loss.threads} threads: {text}")
    untuned = summary.get("untuned_vs_tuned")
    if untuned:
        worst = untuned["worst"]
        lines.append(
            f"analytic decisions reach {untuned['geomean']:.3f} of the tuned speed (geomean of {untuned['cases']}), "
            f"min {untuned['min']:.3f} ({worst['case']} {worst['dtype']} at {worst['threads']} threads)"
        )
    for row in summary["over_peak"]:
        lines.append(
            f"measuring error? {row['system']} on {row['case']} {row['dtype']}: {row['pct_of_peak']:.0f} % of peak"
        )
    for name, reason in result.versions.get("unavailable", {}).items():
        lines.append(f"not here: {name} ({reason})")
    return lines


def search_table(standings: Sequence[Standing]) -> Table:
    """Return one row a strategy and operator: shares of the best known speed after so many trials."""
    counts = sorted({n for s in standings for n in s.shares})
    # Only over the same trials can means be compared.
    common = max(set.intersection(*(set(s.area) for s in standings)), default=0) if standings else 0
    table = Table(box=None, pad_edge=False, caption="median of the seeds, their spread in brackets")
    for column in ("operator", "strategy"):
        table.add_column(column)
    for column in ("seeds", *(f"at {n}" for n in counts), "to 95 %", f"area to {common}", "s / trial"):
        table.add_column(column, justify="right")
    for s in standings:
        shares = (f"{s.shares[n].median:.3f} ({s.shares[n].spread:.2f})" if n in s.shares else "-" for n in counts)
        reached = f"{s.to_95.median:.3g}" if math.isfinite(s.to_95.median) else "never"
        area = f"{s.area[common].median:.3f}" if common else "-"
        seconds = f"{s.seconds_per_trial.median:.2f}"
        table.add_row(s.operator, s.system, str(s.to_95.seeds), *shares, reached, area, seconds)
    return table


def search_lines(report: Report) -> list[str]:
    """Return what the search benchmark comes to in words: means, against TVM's own search, verdicts, notes."""
    lines = []
    for name, figures in summary(report.standings).items():
        lines.append(f"{name}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()))
    for name, told in stock_summary(report.against).items():
        never = f"; on {told['never']} of the operators it never has it" if told["never"] else ""
        fewer = (
            f"{told['fewer']:.3g}x fewer trials for what that has at its end ({told['fewer_than_first']:.3g}x fewer "
            f"than it needed itself){never}"
            if told["fewer"]
            else "never as fast as that at its end"
        )
        lines.append(
            f"{name} beside {STOCK}, {told['operators']} operators: {told['speed']:.3g}x within {told['trials']} "
            f"trials of its speed after {told['stock_trials']} (least {told['least_speed']:.3g}x), {fewer}, "
            f"{told['seconds']:.3g}x its seconds a trial"
        )
    return [*lines, *_verdict_lines(report), *(f"note: {note}" for note in report.notes)]


def settled_lines(report: Report) -> list[str]:
    """Return what runs come to of which only the end is told: see :func:`qimeng_tvm.bench.settle.settled`."""
    lines = []
    for name in dict.fromkeys(s.system for s in report.standings):
        own = [s for s in report.standings if s.system == name]
        mean = geometric_mean(s.shares[max(s.shares)].median for s in own)
        lines.append(f"{name}: {mean:.3f} of the best, {len(own)} operators")
    return [*lines, *_verdict_lines(report)]


def _verdict_lines(report: Report) -> list[str]:
    lines = []
    for v in report.verdicts:
        other = v.second if v.trials == v.second_trials else f"{v.second} at {v.second_trials}"
        lines.append(
            f"{v.first} at {v.trials} trials is {v.ratio:.3f}x {other} ({v.low:.3f} to {v.high:.3f}, "
            f"{v.operators} operators, {v.seeds} seeds): {v.says}"
        )
    return lines
