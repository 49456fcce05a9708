"""Print the tables of docs/benchmarks.md from what ``qimeng bench gemm --json FILE`` wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from qimeng_tvm.bench.result import BenchResult, Row
from qimeng_tvm.bench.table import markdown_table

#: Compute-bound squares whose share of peak is told.
SQUARES = (512, 1000, 1024, 2048)


def standings(summary: dict[str, Any]) -> str:
    """Ratios to the best library."""
    lines = ["| dtype | threads | cases | geomean | min | lost |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for key, s in summary["by_dtype_and_threads"].items():
        dtype, threads = key.split("/")
        mean, least = s["geomean_vs_best_peer"], s["min_vs_best_peer"]
        lines.append(f"| {dtype} | {threads} | {s['cases']} | {mean:.3f} | {least:.3f} | {s['losses']} |")
    return "\n".join(lines) + "\n"


def shares(result: BenchResult) -> str:
    """Shares of peak of the squares with B constant, median and best call."""
    lines = [
        "| dtype | threads | " + " | ".join(map(str, SQUARES)) + " |",
        "| --- | ---: |" + " ---: |" * len(SQUARES),
    ]
    rows = {row.group: row for row in result.rows if row.system == result.ours}
    for dtype, threads in dict.fromkeys((d, n) for _, d, n in rows):
        cells = [_share(rows.get((f"{s}x{s}x{s}-constB", dtype, threads))) for s in SQUARES]
        lines.append(f"| {dtype} | {threads} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _share(row: Row | None) -> str:
    if row is None or row.gflops is None or not row.seconds_median or not row.seconds_min:
        return "-"
    share = 100 * row.gflops / float(row.extra["peak_gflops"])
    return f"{share:.0f} ({share * row.seconds_median / row.seconds_min:.0f})"


def losses(result: BenchResult) -> str:
    """Cases below 0.97 of the best library."""
    found = [d for d in result.losses() if d.ratio < 0.97]
    return ", ".join(f"{d.case} {d.dtype} {d.threads}t {d.ratio:.2f} ({d.best_peer})" for d in found) + "\n"


def main() -> None:
    """Read the file that the command line names."""
    data = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = BenchResult(data["machine"], data["versions"], tuple(Row.from_json(r) for r in data["rows"]))
    print(standings(result.summary()))
    print(shares(result))
    print(losses(result))
    print(markdown_table(result))


if __name__ == "__main__":
    main()
