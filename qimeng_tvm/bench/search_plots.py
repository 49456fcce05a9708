"""The search benchmark's curves as pictures: one file an operator, and one over all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean, median

from qimeng_tvm.bench.curves import Curve
from qimeng_tvm.bench.efficiency import COUNTS, LEAST, best_known, by
from qimeng_tvm.bench.entrant import STOCK
from qimeng_tvm.bench.plot import Line, Panel, chart
from qimeng_tvm.files import write_atomic

OVERVIEW = "overview.svg"
_TRIALS = "measured trials"
_SHARE = "share of the best known speed"
#: Places of the line over seconds.
_PLACES = 120

Row = tuple[float, float, float, float]


def write_plots(curves: Sequence[Curve], folder: Path) -> tuple[Path, ...]:
    """Write the pictures, and return their files.

    Parameters
    ----------
    curves : sequence of Curve
        One run for each operator, system and seed.
    folder : Path
        Made when it is not there.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    systems = list(dict.fromkeys(c.system for c in curves))
    written = []
    for operator, here in by(curves, lambda c: c.operator).items():
        if best_known(here):
            written.append(folder / f"{re.sub(r'[^a-z0-9]+', '-', operator.lower()).strip('-')}.svg")
            write_atomic(written[-1], operator_chart(operator, here, systems))
    if written:
        written.append(folder / OVERVIEW)
        write_atomic(written[-1], overview_chart(curves, systems))
    return tuple(written)


def operator_chart(operator: str, curves: Sequence[Curve], systems: Sequence[str]) -> str:
    """Return the SVG of one operator: share of the best known over trials, and over seconds.

    Parameters
    ----------
    operator : str
        The title.
    curves : sequence of Curve
        Runs on it; the line is the median of the seeds, the band goes from the slowest to the fastest.
    systems : sequence of str
        All that there are, in the order of their colours.
    """
    best = best_known(curves)
    runs = by(curves, lambda c: c.system)
    styles = {name: i for i, name in enumerate(systems)}
    trials = [Line(name, styles[name], _by_trials(own, best)) for name, own in runs.items()]
    seconds = [Line(name, styles[name], _by_seconds(own, best)) for name, own in runs.items()]
    return chart(
        operator,
        (
            Panel(_TRIALS, _SHARE, tuple(trials), _ticks(curves)),
            Panel("seconds since the start", _SHARE, tuple(seconds)),
        ),
    )


def overview_chart(curves: Sequence[Curve], systems: Sequence[str]) -> str:
    """Return the SVG of all operators: geometric means of the medians, and of the band's ends, over trials.

    A strategy that did not run on all operators says so in the legend. What is far below the others, as TVM's own
    search may be, would leave no room between them: a second panel is without it.
    """
    rows: dict[str, list[tuple[Row, ...]]] = {name: [] for name in systems}
    operators = [here for here in by(curves, lambda c: c.operator).values() if best_known(here)]
    for here in operators:
        for name, own in by(here, lambda c: c.system).items():
            rows[name].append(_by_trials(own, best_known(here), from_first=False))
    lines = []
    for style, (name, own_rows) in enumerate(rows.items()):
        whole = "" if len(own_rows) == len(operators) else f" ({len(own_rows)} of {len(operators)})"
        if own_rows:
            lines.append(Line(name + whole, style, _mean(own_rows)))
    panels = [Panel(_TRIALS, "geometric mean of the shares", tuple(lines), _ticks(curves))]
    rest = tuple(line for line in lines if line.name.split(" ")[0] != STOCK)
    if 1 < len(rest) < len(lines):
        own = [c for c in curves if c.system != STOCK]
        panels.append(Panel(_TRIALS, f"the same, without {STOCK}", rest, _ticks(own)))
    title = f"Share of the best known speed, {len(operators)} operator" + ("s" if len(operators) != 1 else "")
    return chart(title, panels)


def _ticks(curves: Sequence[Curve]) -> tuple[float, ...]:
    most = max(c.trials for c in curves)
    return tuple(float(2**i) for i in range(max(COUNTS).bit_length()) if 2**i <= most) or (1.0,)


def _row(x: float, shares: Sequence[float]) -> Row:
    return x, median(shares), min(shares), max(shares)


def _by_trials(runs: Sequence[Curve], best: float, from_first: bool = True) -> tuple[Row, ...]:
    """One row a trial, over the runs of so many; by default from where the slowest of them has a time."""
    rows = [
        _row(float(n), [run.at(n) / best for run in runs if run.trials >= n])
        for n in range(1, max(run.trials for run in runs) + 1)
    ]
    return tuple(row for row in rows if row[2] > 0 or not from_first)


def _by_seconds(runs: Sequence[Curve], best: float) -> tuple[Row, ...]:
    """One row for each place of a logarithmic grid, from the first time of all runs to the end of the longest."""
    starts = [next((s for _, s, speed in run.points if speed), None) for run in runs]
    known = [max(s, LEAST) for s in starts if s is not None]
    if len(known) < len(runs):
        return ()
    low, high = max(known), max(run.seconds for run in runs)
    places = [low] if high <= low else [low * (high / low) ** (i / (_PLACES - 1)) for i in range(_PLACES)]
    # The power may end a little before the last trial.
    places[-1] = max(low, high)
    return tuple(_row(x, [run.after(x) / best for run in runs]) for x in places)


def _mean(rows: Sequence[tuple[Row, ...]]) -> tuple[Row, ...]:
    """Operators' rows, trial by trial, as far as all of them go; from where all of them have a time."""
    together = zip(*rows, strict=False)
    return tuple(
        (same[0][0], *(geometric_mean(max(row[i], LEAST) for row in same) for i in (1, 2, 3)))  # type: ignore[misc]
        for same in together
        if all(row[2] > 0 for row in same)
    )
