"""The cost model: XGBoost over a rule's decisions.

Decisions are the features, so thousands of points can be ranked without building one. MetaSchedule's own per-store
features need the schedule of every point (0.05 to 0.3 s each), and see nothing inside a tensorized micro-kernel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.schedule.contract import SearchSpace, Values
from qimeng_tvm.search.records import schedule_key

Matrix = npt.NDArray[np.float64]
#: Trials before predictions are worth more than the analytic order.
WARM_UP = 6
_ROUNDS = 60
_PARAMETERS = {"max_depth": 4, "eta": 0.2, "min_child_weight": 1, "nthread": 1, "verbosity": 0}
_NUMBER = re.compile(r"\d+")


def features(space: SearchSpace, points: Sequence[Values]) -> Matrix:
    """Return one row a point: of each decision its place among the candidates and the numbers in its value."""
    rows = []
    for values in points:
        row: list[float] = []
        for d in space.decisions:
            value = values[d.name]
            row.append(float(d.candidates.index(value)) if value in d.candidates else -1.0)
            if isinstance(value, int):
                row.append(math.log2(max(value, 1)))
            elif all(_NUMBER.search(str(c)) for c in d.candidates) and d.name != "family":
                numbers = [float(x) for x in _NUMBER.findall(value)]
                row += [numbers[0], numbers[-1], math.prod(numbers)]
        rows.append(row)
    return np.array(rows, dtype=np.float64)


class DecisionModel:
    """What was measured of one task, and a prediction for what was not.

    Parameters
    ----------
    space : SearchSpace
        The decisions.
    prior : callable, optional
        values -> estimated cost (lower is better), an extra feature and the order before there is data.
    seed : int
        Of the trees.
    """

    def __init__(self, space: SearchSpace, prior: Callable[[Values], float] | None = None, seed: int = 0) -> None:
        self.space = space
        self.prior = prior
        self._seed = seed
        self._points: list[Values] = []
        self._seconds: list[float] = []
        self._booster: Any = None

    def add(self, values: Values, seconds: float | None) -> None:
        """Note a trial; a failed one has no seconds."""
        self._points.append(values)
        self._seconds.append(math.inf if seconds is None else seconds)
        self._booster = None

    @property
    def ready(self) -> bool:
        """Whether there is enough to learn from."""
        return sum(math.isfinite(s) for s in self._seconds) >= WARM_UP

    def score(self, points: Sequence[Values]) -> Matrix:
        """Return predicted speed relative to the best measured; before there is data, the analytic order."""
        if not points:
            return np.zeros(0)
        if not self.ready:
            if self.prior is None:
                return np.zeros(len(points))
            costs = np.array([self.prior(p) for p in points])
            return np.asarray(np.min(costs) / np.maximum(costs, 1e-30))
        if self._booster is None:
            self._train()
        return np.asarray(self._booster.predict(xgboost.DMatrix(self._rows(points))), dtype=np.float64)

    def _rows(self, points: Sequence[Values]) -> Matrix:
        rows = features(self.space, points)
        if self.prior is not None:
            costs = np.array([[math.log(max(self.prior(p), 1e-30))] for p in points])
            rows = np.hstack([rows, costs])
        return rows

    def _train(self) -> None:
        speed = min(self._seconds) / np.array(self._seconds)
        data = xgboost.DMatrix(self._rows(self._points), label=speed)
        self._booster = xgboost.train({**_PARAMETERS, "seed": self._seed}, data, num_boost_round=_ROUNDS)


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
