"""What the runs of the search benchmark come to: figures over seeds, as shares of the best known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median

from qimeng_tvm.bench.curves import Curve

#: Trials, and seconds, at which curves are told.
COUNTS = (1, 8, 16, 32, 64)
SECONDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
#: Share of the best known that counts as reached.
REACHED = 0.95
#: A share of nothing, where a geometric mean needs a number.
LEAST = 1e-6


@dataclass(frozen=True)
class Figure:
    """A figure over seeds; infinite where it is never reached.

    Attributes
    ----------
    median, spread, iqr : float
        Of the seeds: median; largest less smallest; third quartile less first.
    seeds : int
        How many there are.
    """

    median: float
    spread: float
    iqr: float
    seeds: int

    @staticmethod
    def of(values: Iterable[float]) -> Figure:
        """Return the figure of the values, at least one."""
        ranked = sorted(values)
        iqr = _less(_quantile(ranked, 0.75), _quantile(ranked, 0.25))
        return Figure(median(ranked), _less(ranked[-1], ranked[0]), iqr, len(ranked))


def _less(high: float, low: float) -> float:
    return 0.0 if high == low else high - low


def _quantile(ranked: Sequence[float], share: float) -> float:
    """Between the two nearest values; numpy's gives no number beside an infinite one."""
    place = share * (len(ranked) - 1)
    low = math.floor(place)
    part = place - low
    return ranked[low] if not part else ranked[low] * (1 - part) + ranked[low + 1] * part


@dataclass(frozen=True)
class Standing:
    """One strategy on one operator, over its seeds.

    Attributes
    ----------
    operator, system : str
        Which.
    trials : int
        Of the longest run.
    shares : Mapping[int, Figure]
        Trials -> speed, as a share of the best that any run on the operator found; over the runs of so many trials.
    by_seconds : Mapping[int, Figure]
        Seconds -> the same, up to the end of the longest run; a run that ended earlier keeps what it had.
    area : Mapping[int, Figure]
        Trials -> mean share over the trials up to there.
    to_95 : Figure
        Trials to 95 % of the best known.
    seconds_per_trial : Figure
        Of the whole run.
    """

    operator: str
    system: str
    trials: int
    shares: Mapping[int, Figure]
    by_seconds: Mapping[int, Figure]
    area: Mapping[int, Figure]
    to_95: Figure
    seconds_per_trial: Figure


def standings(curves: Sequence[Curve]) -> tuple[Standing, ...]:
    """Return what the runs come to, strategy by strategy on every operator."""
    found = []
    for here in by(curves, lambda c: c.operator).values():
        best = best_known(here)
        if best:
            found += [_standing(runs, best) for runs in by(here, lambda c: c.system).values()]
    return tuple(found)


def best_known(curves: Sequence[Curve]) -> float:
    """Return the best GFLOP/s of any run; 0 when none gave a time."""
    return max((c.at(c.trials) for c in curves), default=0.0)


def by(curves: Sequence[Curve], name: Callable[[Curve], str]) -> dict[str, list[Curve]]:
    """Return the runs in groups, by operator or system, each in the order of its first run."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(name(curve), []).append(curve)
    return groups


def _standing(runs: Sequence[Curve], best: float) -> Standing:
    trials, seconds = max(run.trials for run in runs), max(run.seconds for run in runs)
    counts = {n: [run for run in runs if run.trials >= n] for n in COUNTS if n <= trials}
    return Standing(
        operator=runs[0].operator,
        system=runs[0].system,
        trials=trials,
        shares={n: Figure.of(run.at(n) / best for run in long) for n, long in counts.items()},
        by_seconds={s: Figure.of(run.after(s) / best for run in runs) for s in SECONDS if s <= seconds},
        area={
            n: Figure.of(sum(run.at(i) for i in range(1, n + 1)) / n / best for run in long)
            for n, long in counts.items()
        },
        to_95=Figure.of(run.reaches(REACHED * best) for run in runs),
        seconds_per_trial=Figure.of(run.seconds / max(1, len(run.points)) for run in runs),
    )


def summary(found: Sequence[Standing]) -> dict[str, dict[str, float]]:
    """Return each strategy's figures over its operators: geometric means of medians, and how often 95 % was reached."""
    told = {}
    for system in dict.fromkeys(s.system for s in found):
        own = [s for s in found if s.system == system]
        counts = sorted(set.intersection(*(set(s.shares) for s in own)))
        told[system] = {
            "operators": len(own),
            **{f"share@{n}": geometric_mean(max(s.shares[n].median, LEAST) for s in own) for n in counts},
            **{f"area@{n}": geometric_mean(max(s.area[n].median, LEAST) for s in own) for n in counts[1:]},
            "reached": sum(math.isfinite(s.to_95.median) for s in own) / len(own),
            "seconds_per_trial": geometric_mean(max(s.seconds_per_trial.median, LEAST) for s in own),
        }
    return told
