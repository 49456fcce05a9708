"""The analytic proposal: what the model of caches and ports says of every candidate, as weights.

It has the form of a language model's proposal, and is what a search starts from without one. The weight of a candidate
falls with the estimated cycles of the best point that has it: the analytic decisions with that one changed, and, where
that does not go together, with one more.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

from qimeng_tvm.schedule.apply import Task
from qimeng_tvm.schedule.contract import Decision, SearchSpace, Value, Values
from qimeng_tvm.schedule.proposal import Proposal, Weighted

#: How fast weights fall with estimated cycles: twice the cycles is a hundred times less probable.
SHARPNESS = 6.6
#: Candidates below this share of the best one's weight are left out.
_LEAST = 0.01


def analytic_proposal(task: Task) -> Proposal:
    """Return candidates and weights of a task's decisions by its rule's estimate.

    A rule without an estimate gets even weights for all candidates.
    """
    space = task.space
    choices = {}
    for decision in space.decisions:
        if len(decision.candidates) > 1:
            costs = {v: c for v in decision.candidates if (c := _least(task, decision.name, v)) is not None}
            choices[decision.name] = _weighted(decision, costs)
    why = f"estimated cycles of {task.rule.name} on {task.hardware.name}, one decision at a time"
    return Proposal(MappingProxyType(choices), why)


def _weighted(decision: Decision, costs: dict[Value, float]) -> Weighted:
    if not costs or min(costs.values()) <= 0:
        even = 1.0 / len(decision.candidates)
        return Weighted(decision.candidates, (even,) * len(decision.candidates))
    best = min(costs.values())
    weights = {v: (best / c) ** SHARPNESS for v, c in costs.items()}
    kept = [v for v in decision.candidates if weights.get(v, 0.0) >= _LEAST]
    total = sum(weights[v] for v in kept)
    return Weighted(tuple(kept), tuple(weights[v] / total for v in kept))


def _least(task: Task, name: str, value: Value) -> float | None:
    """Return the estimate of the best point near the defaults that has a value; None when none is legal."""
    start = {**task.space.defaults(), name: value}
    if task.space.illegal(start) is None:
        return _estimate(task, start)
    found = [_estimate(task, p) for p in _one_more(task.space, start, name)]
    return min(found, default=None)


def _one_more(space: SearchSpace, start: Values, name: str) -> Iterator[Values]:
    for decision in space.decisions:
        if decision.name == name:
            continue
        for value in decision.candidates:
            point = {**start, decision.name: value}
            if space.illegal(point) is None:
                yield point


def _estimate(task: Task, values: Values) -> float:
    return float(task.rule.estimate(values, task.info, task.hardware))
