"""Runs of the search benchmark as curves: how good the best schedule is after so many trials, or seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qimeng_tvm.errors import UsageError
from qimeng_tvm.search import journal

#: (trial, seconds since the start, best GFLOP/s so far).
Point = tuple[int, float, float]
#: Operator, system, seed, trials.
Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class Curve:
    """One run of one strategy.

    Attributes
    ----------
    operator, system : str
        What was tuned, by what.
    seed, trials : int
        Of the run.
    points : tuple of (int, float, float)
        Trial, seconds since the start, best GFLOP/s so far.
    machine : str
        Where; empty when the run does not say.
    decisions : Mapping[str, int or str]
        What it ended with; empty when it does not say, as TVM's own.
    """

    operator: str
    system: str
    seed: int
    trials: int
    points: tuple[Point, ...]
    machine: str = ""
    decisions: Mapping[str, int | str] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What tells one run from another."""
        return self.operator, self.system, self.seed, self.trials

    def at(self, trials: int) -> float:
        """Return the best GFLOP/s after so many trials; 0 when nothing gave a time."""
        return max((best for trial, _, best in self.points if trial <= trials), default=0.0)

    def after(self, seconds: float) -> float:
        """Return the best GFLOP/s after so many seconds; what a run ended with, it has from then on."""
        return max((best for _, passed, best in self.points if passed <= seconds), default=0.0)

    def reaches(self, speed: float) -> float:
        """Return the first trial that is as fast as that; infinity when none is."""
        return min((float(trial) for trial, _, best in self.points if best >= speed), default=math.inf)

    @property
    def first_best(self) -> int:
        """First trial of its best; what the last one adds may be the second timing of another, and is not counted."""
        before = max((best for _, _, best in self.points[:-1]), default=0.0)
        return int(self.reaches(before)) if before else len(self.points)

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.points[-1][1] if self.points else 0.0


def longest(curves: Iterable[Curve]) -> tuple[Curve, ...]:
    """Return one run for each operator, system and seed: the one of the most trials, the first of equals."""
    kept: dict[tuple[str, str, int], Curve] = {}
    for curve in curves:
        known = kept.get(curve.key[:3])
        if known is None or curve.trials > known.trials:
            kept[curve.key[:3]] = curve
    return tuple(kept.values())


def machine_notes(curves: Sequence[Curve]) -> list[str]:
    """Return what is to be said when not all runs are known to be of one machine."""
    machines = sorted({c.machine for c in curves})
    if len(machines) < 2:
        return []
    where = "; ".join(
        f"{m or 'not told'}: {', '.join(sorted({c.system for c in curves if c.machine == m}))}" for m in machines
    )
    return [f"the runs are not known to be of one machine, so ratios between them may compare machines ({where})"]


def read_journal(path: Path) -> dict[Key, Curve]:
    """Return the finished runs of a benchmark's own file; a last line that a kill tore is cut off."""
    journal.repair(path)
    return {curve.key: curve for curve in _lines(path)}


def read_curves(path: Path) -> tuple[Curve, ...]:
    """Return the runs of a file that another benchmark wrote, or is writing: a journal, or the JSON of a result.

    Raises
    ------
    UsageError
        If there is no such file, or it is of something else.
    """
    if not path.is_file():
        raise UsageError(f"no file of runs is at {path}: name what --resume or --json wrote")
    return _lines(path)


def append(path: Path, curve: Curve) -> None:
    """Add a run to a file, which is made when it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    journal.append(path, [json.dumps(asdict(curve)).encode()])


def _lines(path: Path) -> tuple[Curve, ...]:
    found: list[Curve] = []
    for number, line in enumerate(journal.read(path), 1):
        try:
            entry = json.loads(line)
            found += map(_curve, entry.get("curves", [entry]))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UsageError(f"{path} line {number} is no run of this benchmark: name another file") from error
    return tuple(found)


def _curve(entry: dict[str, Any]) -> Curve:
    points = tuple((int(n), float(s), float(g)) for n, s, g in entry["points"])
    return Curve(**{**entry, "points": points})
