"""The cost model: XGBoost over what points ask of registers and caches, and the analytic estimate.

Features of a blocking mean the same for every shape and type, so that one model serves all tasks of a rule: it learns
from this run's tasks, from records of other operators on this machine, and from measurements that are shipped. Alone,
a few trials of one task rank its points worse than the analytic estimate does (scripts/cost_study.py measures that,
and that MetaSchedule's per-store features, which need the schedule of every point, add next to nothing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xgboost
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.schedule.contract import SearchSpace, Values
from qimeng_tvm.search.features import Matrix, decision_rows
from qimeng_tvm.search.records import schedule_key

#: Trials of a task without an estimate before predictions are worth more than chance.
WARM_UP = 6
#: Measured points, of all operators, from which the model knows more than the estimate.
ENOUGH = 96
#: A failed point counts as this many times slower than the best.
_FAILED = 8.0
#: Weight of a point falls with the square of its slowdown: which of the slow ones is slower is of no interest.
_FOCUS = 2.0
_ROUNDS = 80
#: Of the trees over all operators.
SHARED: dict[str, Any] = {
    "max_depth": 4,
    "eta": 0.1,
    "min_child_weight": 3,
    "lambda": 2,
    "subsample": 0.8,
    "nthread": 1,
    "verbosity": 0,
}
#: Of one task alone: few points, each of which counts.
ALONE: dict[str, Any] = {**SHARED, "eta": 0.2, "min_child_weight": 1, "lambda": 1, "subsample": 1.0}

Row = Sequence[float]


@dataclass
class Group:
    """Points of one operator; only their ratios to each other mean something.

    Attributes
    ----------
    rows : list of sequences
        Features.
    seconds : list of float
        Infinity where a point gave no time.
    """

    rows: list[Row] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, row: Row, seconds: float | None) -> None:
        """Note a point."""
        self.rows.append(row)
        self.seconds.append(math.inf if seconds is None else seconds)

    @property
    def timed(self) -> int:
        """Points that gave a time."""
        return sum(math.isfinite(s) for s in self.seconds)

    def slowdowns(self) -> Matrix:
        """Return the logarithm of each time over the best one's."""
        seconds = np.array(self.seconds, dtype=np.float64)
        best = float(np.min(seconds)) if len(seconds) else math.inf
        if not math.isfinite(best):
            return np.full(len(seconds), math.log(_FAILED))
        return np.asarray(np.log(np.minimum(seconds / best, _FAILED)))


def trained(groups: Iterable[Group], seed: int, parameters: dict[str, Any]) -> Any:
    """Return trees that predict the logarithm of the slowdown."""
    used = [g for g in groups if g.timed]
    labels = np.concatenate([g.slowdowns() for g in used])
    rows = np.array([row for g in used for row in g.rows], dtype=np.float64)
    data = xgboost.DMatrix(rows, label=labels, weight=np.exp(-_FOCUS * labels))
    return xgboost.train({**parameters, "seed": seed}, data, num_boost_round=_ROUNDS)


class RuleModel:
    """What is known of all operators that one rule serves on one machine.

    Parameters
    ----------
    seed : int
        Of the trees.
    known : iterable of Group
        Other operators: of earlier runs, and shipped.
    """

    def __init__(self, seed: int = 0, known: Iterable[Group] = ()) -> None:
        self._seed = seed
        self._known = list(known)
        self._groups: dict[str, Group] = {}
        self._booster: Any = None

    def group(self, name: str) -> Group:
        """Return the points of a task, to be added to by :meth:`add`."""
        return self._groups.setdefault(name, Group())

    def add(self, name: str, row: Row, seconds: float | None) -> None:
        """Note a trial of a task."""
        self.group(name).add(row, seconds)
        self._booster = None

    @property
    def ready(self) -> bool:
        """Whether there is enough to know better than the estimate."""
        return sum(g.timed for g in (*self._known, *self._groups.values())) >= ENOUGH

    def score(self, rows: Sequence[Row]) -> Matrix:
        """Return predicted speed, as a share of the best of the points' own task."""
        if self._booster is None:
            self._booster = trained((*self._known, *self._groups.values()), self._seed, SHARED)
        slowdown = self._booster.predict(xgboost.DMatrix(np.array(rows, dtype=np.float64)))
        return np.asarray(np.exp(-slowdown), dtype=np.float64)


class DecisionModel:
    """What was measured of one task, and a prediction for what was not.

    Parameters
    ----------
    space : SearchSpace
        The decisions.
    prior : callable, optional
        values -> estimated cost (lower is better): a feature, and the order before there is data.
    seed : int
        Of the trees.
    shared : RuleModel, optional
        What is known of other operators of the rule.
    row : callable, optional
        values -> features that mean the same for all of them, or None; without it only this task's points count.
    name : str
        Of the task, among the shared model's.
    """

    def __init__(
        self,
        space: SearchSpace,
        prior: Callable[[Values], float] | None = None,
        seed: int = 0,
        *,
        shared: RuleModel | None = None,
        row: Callable[[Values], Row | None] | None = None,
        name: str = "",
    ) -> None:
        self.space = space
        self.prior = prior
        self._seed = seed
        self._shared = shared
        self._row = row
        self._name = name
        self._own = Group()
        self._booster: Any = None

    def add(self, values: Values, seconds: float | None) -> None:
        """Note a trial; a failed one has no seconds."""
        self._own.add(self._own_rows([values])[0], seconds)
        self._booster = None
        row = self._row(values) if self._row is not None else None
        if self._shared is not None and row is not None:
            self._shared.add(self._name, row, seconds)

    @property
    def ready(self) -> bool:
        """Whether there is enough to learn from."""
        return self._alone or (self._shared is not None and self._row is not None and self._shared.ready)

    @property
    def _alone(self) -> bool:
        """Whether this task's own points are enough."""
        return self._own.timed >= (WARM_UP if self.prior is None else ENOUGH)

    def score(self, points: Sequence[Values]) -> Matrix:
        """Return predicted speed relative to the best measured; before there is data, the analytic order."""
        if not points:
            return np.zeros(0)
        if self._shared is not None and self._shared.ready:
            rows = [r for p in points if (r := self._row(p) if self._row is not None else None) is not None]
            if len(rows) == len(points):
                return self._shared.score(rows)
        if not self._alone:
            if self.prior is None:
                return np.zeros(len(points))
            costs = np.array([self.prior(p) for p in points])
            return np.asarray(np.min(costs) / np.maximum(costs, 1e-30))
        if self._booster is None:
            self._booster = trained([self._own], self._seed, ALONE)
        slowdown = self._booster.predict(xgboost.DMatrix(self._own_rows(points)))
        return np.asarray(np.exp(-slowdown), dtype=np.float64)

    def _own_rows(self, points: Sequence[Values]) -> Matrix:
        rows = decision_rows(self.space, points)
        if self.prior is not None:
            costs = np.array([[math.log(max(self.prior(p), 1e-30))] for p in points])
            rows = np.hstack([rows, costs])
        return rows


@derived_object
class TaskModels(ms.cost_model.PyCostModel):  # type: ignore[misc]
    """The models of all tasks, as MetaSchedule's cost model.

    Parameters
    ----------
    find : callable
        Key of a scheduled module -> (its task's model, its decisions), or None when unknown.
    """

    def __init__(self, find: Callable[[str], tuple[DecisionModel, Values] | None]) -> None:
        super().__init__()
        self.find = find

    def load(self, path: str) -> None:
        """Nothing to do: the tuning records are what is kept."""

    def save(self, path: str) -> None:
        """Nothing to do: the tuning records are what is kept."""

    def update(self, context: Any, candidates: Sequence[Any], results: Sequence[Any]) -> None:
        """Learn from measured candidates."""
        for candidate, result in zip(candidates, results, strict=True):
            known = self.find(schedule_key(candidate.sch.mod))
            if known is not None:
                model, values = known
                model.add(values, min(float(s) for s in result.run_secs) if result.run_secs else None)

    def predict(self, context: Any, candidates: Sequence[Any]) -> Matrix:
        """Return one score a candidate; 0 for those this run did not make."""
        found = [self.find(schedule_key(c.sch.mod)) for c in candidates]
        return np.array([0.0 if f is None else float(f[0].score([f[1]])[0]) for f in found], dtype=np.float64)
