"""Milliseconds a call as tables."""

from __future__ import annotations

from rich.table import Table

from qimeng_tvm.bench.result import BenchResult, Row


def _milliseconds(row: Row | None) -> str:
    if row is None or row.seconds_median is None:
        return "" if row is None else ("failed" if row.extra.get("error") else "-")
    value = row.seconds_median * 1e3
    text = f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return f"({text}) wrong" if row.extra.get("wrong") else text


def _lines(result: BenchResult) -> list[tuple[list[str], str, list[tuple[str, bool]], str, str]]:
    """One line a group: its key, its operations, the cells and which is the best, our ratio, and to whom."""
    duels = {(d.case, d.dtype, d.threads): d for d in result.duels()}
    lines = []
    for key, members in result.groups().items():
        right = [r for r in members.values() if r.counts]
        best = min(right, key=lambda r: r.seconds_median or 0.0) if right else None
        cells = [(_milliseconds(members.get(name)), members.get(name) is best is not None) for name in result.systems()]
        operations = f"{(best.gflops or 0.0) * (best.seconds_median or 0.0):.3g}" if best else ""
        duel = duels.get(key)
        ratio, rival = (f"{duel.ratio:.2f}", duel.best_peer) if duel else ("", "")
        lines.append(([str(k) for k in key], operations, cells, ratio, rival))
    return lines


def rich_table(result: BenchResult) -> Table:
    """Return milliseconds by case and system; the best right answer in bold, a wrong one in brackets."""
    table = Table(title="milliseconds a call, median of interleaved repeats")
    for heading in ("case", "dtype", "threads"):
        table.add_column(heading, no_wrap=True)
    for heading in ("GFLOP", *result.systems(), "vs best peer"):
        table.add_column(heading, justify="right")
    table.add_column("best peer")
    for key, operations, cells, ratio, rival in _lines(result):
        texts = [f"[bold]{text}[/bold]" if best else text for text, best in cells]
        table.add_row(*key, operations, *texts, ratio, rival)
    return table


def markdown_table(result: BenchResult) -> str:
    """Return the same as a Markdown table."""
    names = result.systems()
    rows = [
        ["case", "dtype", "threads", "GFLOP", *names, "vs best peer", "best peer"],
        ["---", "---", *["---:"] * (len(names) + 3), "---"],
    ]
    for key, operations, cells, ratio, rival in _lines(result):
        rows.append([*key, operations, *(f"**{t}**" if best else t for t, best in cells), ratio, rival])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def note_lines(result: BenchResult) -> list[str]:
    """Return why systems other than ours were not timed."""
    return [
        f"not timed: {row.system} on {row.case} {row.dtype} at {row.threads} threads: {row.extra['note']}"
        for row in result.rows
        if row.seconds_median is None and row.extra.get("note") and row.system != result.ours
    ]
