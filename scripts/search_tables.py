"""Print the tables of docs/benchmarks.md from what ``qimeng bench search --json FILE`` wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import geometric_mean
from typing import Any

#: Trials whose shares are told in the ablation's table.
AT = "16"
#: Less than any share that was measured.
_NOTHING = 1e-3


def means(summary: dict[str, dict[str, float]]) -> str:
    """One row a strategy: geometric means over its operators."""
    counts = sorted({int(key[6:]) for row in summary.values() for key in row if key.startswith("share@")})
    lines = [
        f"| strategy | operators | {' | '.join(f'{n} trials' if n > 1 else '1 trial' for n in counts)} | "
        "95 % reached | seconds a trial |",
        "| --- | ---: |" + " ---: |" * (len(counts) + 2),
    ]
    for name, row in summary.items():
        shares = " | ".join(_number(row.get(f"share@{n}"), 3) for n in counts)
        lines.append(
            f"| `{name}` | {row['operators']} | {shares} | {row['reached']:.0%} | {row['seconds_per_trial']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def operators(standings: list[dict[str, Any]]) -> str:
    """One row an operator and strategy: median share (spread; interquartile range) and trials to 95 %."""
    counts = sorted({int(n) for row in standings for n in row["shares"]})
    common = max(set.intersection(*({int(n) for n in row["area"]} for row in standings)))
    lines = [
        f"| operator | strategy | seeds | {' | '.join(f'{n} trials' if n > 1 else '1 trial' for n in counts)} | "
        f"trials to 95 % | area to {common} | seconds a trial |",
        "| --- | --- | ---: |" + " ---: |" * (len(counts) + 3),
    ]
    for row in standings:
        shares = " | ".join(_figure(row["shares"].get(str(n))) for n in counts)
        area = _number(row["area"][str(common)]["median"], 3)
        lines.append(
            f"| {row['operator']} | `{row['system']}` | {row['to_95']['seeds']} | {shares} | "
            f"{_trials(row['to_95']['median'])} | {area} | {row['seconds_per_trial']['median']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def seconds(standings: list[dict[str, Any]]) -> str:
    """One row an operator and strategy: median share after so many seconds."""
    grid = sorted({int(n) for row in standings for n in row["by_seconds"]})
    lines = [
        f"| operator | strategy | {' | '.join(f'{n} s' for n in grid)} |",
        "| --- | --- |" + " ---: |" * len(grid),
    ]
    for row in standings:
        shares = (row["by_seconds"].get(str(n)) for n in grid)
        cells = " | ".join("" if s is None else _number(s["median"], 3) for s in shares)
        lines.append(f"| {row['operator']} | `{row['system']}` | {cells} |")
    return "\n".join(lines) + "\n"


def ends(standings: list[dict[str, Any]]) -> str:
    """One row a strategy: share of the best that its runs ended with, on every operator, and the geometric mean."""
    names = list(dict.fromkeys(row["operator"] for row in standings))
    lines = [
        f"| strategy | {' | '.join(names)} | geometric mean |",
        "| --- |" + " ---: |" * (len(names) + 1),
    ]
    for system in dict.fromkeys(row["system"] for row in standings):
        own = {r["operator"]: r["shares"][max(r["shares"], key=int)] for r in standings if r["system"] == system}
        cells = " | ".join(f"{own[n]['median']:.3f} ({own[n]['spread']:.3f})" if n in own else "-" for n in names)
        lines.append(f"| `{system}` | {cells} | {geometric_mean(f['median'] for f in own.values()):.3f} |")
    return "\n".join(lines) + "\n"


def beside_stock(against: dict[str, Any]) -> str:
    """One row an operator and strategy beside TVM's own search, and the geometric means."""
    lines = [
        "| operator | strategy | trials / TVM's | speed / TVM's | trials for TVM's last speed | "
        "fewer than all of TVM's | fewer than TVM needed | seconds a trial / TVM's |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in against["operators"]:
        fewer = (row["fewer"], row["fewer_than_first"]) if row["needed"] else (None, None)
        lines.append(
            f"| {row['operator']} | `{row['system']}` | {row['trials']} / {row['stock_trials']} | {row['speed']:.2f} | "
            f"{_trials(row['needed'])} | {_times(fewer[0])} | {_times(fewer[1])} | {row['seconds']:.2f} |"
        )
    for name, row in against["summary"].items():
        never = f"never on {row['never']}" if row["never"] else ""
        lines.append(
            f"| geometric mean of {row['operators']} | `{name}` | {row['trials']} / {row['stock_trials']} | "
            f"{row['speed']:.2f} | {never} | {_times(row['fewer'])} | {_times(row['fewer_than_first'])} | "
            f"{row['seconds']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def verdicts(found: list[dict[str, Any]]) -> str:
    """One row a pair of strategies: ratio of geometric means, its interval, and what that says."""
    lines = [
        "| first | second | trials | first / second | 95 % interval | operators | seeds | first is |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for v in found:
        trials = f"{v['trials']}" if v["trials"] == v["second_trials"] else f"{v['trials']} / {v['second_trials']}"
        lines.append(
            f"| `{v['first']}` | `{v['second']}` | {trials} | {v['ratio']:.3f} | {v['low']:.3f} to {v['high']:.3f} | "
            f"{v['operators']} | {v['seeds']} | {v['says']} |"
        )
    return "\n".join(lines) + "\n"


def ablation(data: dict[str, Any]) -> str:
    """One row a strategy less a part: share, spread, and the whole strategy over it; empty without such runs."""
    pairs = {(v["first"], v["second"]): v for v in data["verdicts"] if v["trials"] == v["second_trials"]}
    # Of what longer runs ended with, nothing is known of the time before.
    known = {name for name, row in data["summary"].items() if (row.get(f"share@{AT}") or 0) > _NOTHING}
    rows = [name for name in data["summary"] if "-" in name and {name, name.split("-")[0]} <= known]
    if not rows:
        return ""
    names = list(dict.fromkeys(part for name in rows for part in (name.split("-")[0], name)))
    lines = [
        f"| strategy | share after {AT} trials | spread of the seeds, median operator | the whole one / this one | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name in names:
        if name not in data["summary"]:
            continue
        spreads = sorted(
            row["shares"][AT]["spread"] for row in data["standings"] if row["system"] == name and AT in row["shares"]
        )
        v = pairs.get((name.split("-")[0], name))
        told = f"{v['ratio']:.3f} ({v['low']:.3f} to {v['high']:.3f}) | {v['says']}" if v else " | "
        lines.append(
            f"| `{name}` | {_number(data['summary'][name].get(f'share@{AT}'), 3)} | "
            f"{_number(spreads[len(spreads) // 2] if spreads else None, 3)} | {told} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _figure(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['median']:.3f} ({figure['spread']:.3f}; {figure['iqr']:.3f})"


def _trials(value: float | None) -> str:
    return "never" if value is None else f"{value:g}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def main() -> None:
    """Read the file that the command line names."""
    data = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(means(data["summary"]))
    print(beside_stock(data["against_stock"]) if data["against_stock"]["operators"] else "")
    print(verdicts(data["verdicts"]))
    print(ablation(data))
    print(operators(data["standings"]))
    print(seconds(data["standings"]))
    if data.get("settled"):
        print("What the runs ended with, timed again side by side:\n")
        print(ends(data["settled"]["standings"]))
        print(verdicts(data["settled"]["verdicts"]))
        print(ablation(data["settled"]))
    for note in data["notes"]:
        print(f"Note: {note}")


if __name__ == "__main__":
    main()
