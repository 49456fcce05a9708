"""Print the tables of docs/benchmarks.md from what ``qimeng eval generate --json`` printed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import geometric_mean
from typing import Any

#: What the judge of families says of an accepted one: beside the reference, of the peak, or read off the machine code.
_RATIO = re.compile(r"yours is at ([\d.]+) of it")
_PEAK = re.compile(r"^Tile \S+: (\d+)% of these instructions' measured peak")
_STATIC = re.compile(r"of the inner loop: \S+ ([\d.]+)")
#: "81.4 GFLOP/s, 0.988 of ours", as the baseline's judge says it.
_BASELINE = re.compile(r"^([\d.]+) GFLOP/s, ([\d.]+) of ours$")


def families(tasks: list[dict[str, Any]]) -> str:
    """One row a task: what its samples came to."""
    lines = [
        "| task | checked on | samples | pass@1 | pass@3 | rounds | speed / reference | % of its peak | density |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for task in tasks:
        attempts = task["attempts"]
        name = task["task"].rsplit(" ", 1)[-1]
        if not attempts:
            lines.append(f"| {name} | not checked: {task['skipped']} | | | | | | | |")
            continue
        rounds = sum(a["rounds"] for a in attempts) / len(attempts)
        figures = " | ".join(_found(pattern, attempts) for pattern in (_RATIO, _PEAK, _STATIC))
        lines.append(
            f"| {name} | {task['machine']} | {len(attempts)} | {_share(task['pass@1'])} | {_share(task['pass@3'])} | "
            f"{rounds:.1f} | {figures} |"
        )
    return "\n".join(lines) + "\n"


def baseline(tasks: list[dict[str, Any]]) -> str:
    """One row a data type: plain C beside our operator."""
    lines = [
        "| data type | samples right | GFLOP/s of each | ours in the same turns | ours / theirs, geomean |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for task in tasks:
        found = [(float(m[1]), float(m[2])) for a in task["attempts"] if (m := _BASELINE.match(a["findings"]))]
        ratio = f"{geometric_mean(1 / share for _, share in found):.2f}" if found else "-"
        lines.append(
            f"| {task['task'].rsplit('.', 1)[-1]} | {len(found)}/{len(task['attempts'])} | "
            f"{', '.join(f'{speed:.1f}' for speed, _ in found) or '-'} | "
            f"{', '.join(f'{speed / share:.1f}' for speed, share in found) or '-'} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def _found(pattern: re.Pattern[str], attempts: list[dict[str, Any]]) -> str:
    found = [m[1] for a in attempts if (m := pattern.search(a["findings"]))]
    return ", ".join(found) or "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    """Read the files that the command line names, and put their tasks together."""
    reports = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    print(families([task for report in reports for task in report["tasks"]]))
    print(baseline([task for report in reports for task in report["vanilla"]]))


if __name__ == "__main__":
    main()
