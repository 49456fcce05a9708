"""Strategies of the search benchmark against one another: beside TVM's own search, and what is beyond the spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Any

import numpy as np

from qimeng_tvm.bench.curves import Curve
from qimeng_tvm.bench.efficiency import LEAST, best_known, by
from qimeng_tvm.bench.entrant import STOCK, whole_of

#: Trials of ours that are set against all of TVM's own.
OURS_AT = 16
#: What the others are compared with.
LEAD = "mcts"
#: With fewer seeds nothing is said about what is beyond the spread.
MIN_SEEDS = 3
_DRAWS, _CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class AgainstStock:
    """One strategy beside TVM's own space and search on one operator; medians of the seeds.

    Attributes
    ----------
    operator, system : str
        Which.
    trials, stock_trials : int
        Of ours, 16 where there are so many, and all of stock's, of which ``speed`` is the ratio.
    speed : float
        Ours / stock's.
    needed : float
        Trials that ours needs for what stock has after all of its own; infinite when most seeds never have it.
    stock_first : float
        Trial at which stock itself first had its best. What its last trial adds is not counted (it holds the
        finalists' second timing), so this is rather too small than too large.
    seconds : float
        Ours / stock's seconds a trial.
    """

    operator: str
    system: str
    trials: int
    stock_trials: int
    speed: float
    needed: float
    stock_first: float
    seconds: float

    @property
    def fewer(self) -> float:
        """How many times fewer trials than all of stock's; 0 when it is never reached."""
        return self.stock_trials / self.needed

    @property
    def fewer_than_first(self) -> float:
        """How many times fewer trials than stock itself needed for it."""
        return self.stock_first / self.needed


@dataclass(frozen=True)
class Verdict:
    """Whether one strategy is better than another, beyond the spread.

    Attributes
    ----------
    first, second : str
        Strategies.
    trials, second_trials : int
        After which they are compared.
    operators, seeds : int
        Operators that both ran on; the fewest seeds on any of them.
    ratio, low, high : float
        Of the geometric means over operators, first / second; its 95 % bootstrap interval over seeds.
    """

    first: str
    second: str
    trials: int
    second_trials: int
    operators: int
    seeds: int
    ratio: float
    low: float
    high: float

    @property
    def says(self) -> str:
        """``better``, ``worse``, ``within the spread`` or ``too few seeds``."""
        if self.seeds < MIN_SEEDS:
            return "too few seeds"
        return "better" if self.low > 1 else "worse" if self.high < 1 else "within the spread"


def against_stock(curves: Sequence[Curve]) -> tuple[AgainstStock, ...]:
    """Return every strategy beside TVM's own search, on each operator that both ran on."""
    found = []
    for here in by(curves, lambda c: c.operator).values():
        stock = [c for c in here if c.system == STOCK]
        if not best_known(stock):
            continue
        ours = by([c for c in here if c.system != STOCK], lambda c: c.system)
        found += [_beside(runs, stock) for runs in ours.values()]
    return tuple(found)


def _beside(runs: Sequence[Curve], stock: Sequence[Curve]) -> AgainstStock:
    runs, trials = _as_long(runs, OURS_AT)
    stock, budget = _as_long(stock, max(s.trials for s in stock))
    speed = median(s.at(budget) for s in stock)
    return AgainstStock(
        operator=runs[0].operator,
        system=runs[0].system,
        trials=trials,
        stock_trials=budget,
        speed=median(r.at(trials) for r in runs) / speed if speed else math.inf,
        needed=median(r.reaches(speed) for r in runs),
        stock_first=median(float(s.first_best) for s in stock),
        seconds=median(r.seconds / max(1, len(r.points)) for r in runs)
        / median(s.seconds / max(1, len(s.points)) for s in stock),
    )


def _as_long(runs: Sequence[Curve], trials: int) -> tuple[list[Curve], int]:
    """Return the runs of so many trials, or of as many as there are, and how many those are."""
    trials = min(trials, max(r.trials for r in runs))
    return [r for r in runs if r.trials >= trials], trials


def stock_summary(found: Sequence[AgainstStock]) -> dict[str, dict[str, float | int | None]]:
    """Return each strategy's geometric means beside TVM's own search.

    Trials are of the operators on which the strategy gets as far; ``never`` is the number of the others, and with any
    of them the ratio tells too much.
    """
    told: dict[str, dict[str, float | int | None]] = {}
    for system in dict.fromkeys(s.system for s in found):
        own = [s for s in found if s.system == system]
        there = [s for s in own if math.isfinite(s.needed)]
        told[system] = {
            "operators": len(own),
            "trials": min(s.trials for s in own),
            "stock_trials": min(s.stock_trials for s in own),
            "speed": geometric_mean(max(s.speed, LEAST) for s in own),
            "least_speed": min(s.speed for s in own),
            "fewer": geometric_mean(s.fewer for s in there) if there else None,
            "fewer_than_first": geometric_mean(s.fewer_than_first for s in there) if there else None,
            "never": len(own) - len(there),
            "seconds": geometric_mean(max(s.seconds, LEAST) for s in own),
        }
    return told


def verdict(
    curves: Sequence[Curve], first: str, second: str, trials: int, second_trials: int | None = None, seed: int = 0
) -> Verdict | None:
    """Return whether one strategy is faster than another after so many trials.

    An operator counts by the median of its seeds. The interval comes from drawing seeds anew, with replacement, for
    each operator and strategy on its own.

    Parameters
    ----------
    curves : sequence of Curve
        Runs; those of fewer trials do not count.
    first, second : str
        Strategies.
    trials, second_trials : int
        After which they are compared; the second one's are as many by default.
    seed : int
        Of the draws.

    Returns
    -------
    Verdict or None
        None when no operator was tuned by both.
    """
    counts = {first: trials, second: second_trials or trials}
    pairs = []
    for here in by(curves, lambda c: c.operator).values():
        sides = [
            [math.log(max(c.at(n), LEAST)) for c in here if c.system == name and c.trials >= n]
            for name, n in counts.items()
        ]
        if all(sides):
            pairs.append((np.array(sides[0]), np.array(sides[1])))
    if not pairs:
        return None
    rng = np.random.default_rng(seed)
    drawn = np.mean([_medians(one, rng) - _medians(other, rng) for one, other in pairs], axis=0)
    outside = (1 - _CONFIDENCE) / 2
    low, high = np.exp(np.quantile(drawn, [outside, 1 - outside]))
    ratio = math.exp(np.mean([np.median(one) - np.median(other) for one, other in pairs]))
    seeds = min(len(side) for pair in pairs for side in pair)
    return Verdict(first, second, trials, counts[second], len(pairs), seeds, ratio, float(low), float(high))


def _medians(values: Any, rng: np.random.Generator) -> Any:
    return np.median(rng.choice(values, (_DRAWS, len(values))), axis=1)


def verdicts(curves: Sequence[Curve], first: str = LEAD, trials: int = OURS_AT) -> tuple[Verdict, ...]:
    """Return the pairs that are asked about, after so many trials, or as many as both have.

    A strategy against every other (the first that ran takes its place where it did not) and against all of stock's
    trials; and each strategy against itself less some of its parts.
    """
    most: dict[str, int] = {}
    for curve in curves:
        most[curve.system] = max(curve.trials, most.get(curve.system, 0))
    lead = first if first in most else next(iter(most), first)
    pairs = [(lead, other) for other in most if other != lead]
    pairs += [(whole_of(name), name) for name in most if whole_of(name) not in (name, lead) and whole_of(name) in most]
    # Of what runs ended with, timed again, nothing is told but the end.
    least = {n: min((c.points[0][0] for c in curves if c.system == n and c.points), default=0) for n in most}
    found = []
    for one, other in pairs:
        both = min(trials, most[one], most[other])
        found.append(verdict(curves, one, other, *(both if least[n] <= both else most[n] for n in (one, other))))
    if STOCK in most and most[STOCK] > trials and lead != STOCK:
        found.append(verdict(curves, lead, STOCK, min(trials, most[lead]), most[STOCK]))
    return tuple(v for v in found if v is not None)
