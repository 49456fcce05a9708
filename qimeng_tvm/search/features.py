"""What the cost model sees of a point."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule.contract import BlockInfo, Decision, SearchSpace, Value, Values
from qimeng_tvm.schedule.pressure import features_of, plan_of

Matrix = npt.NDArray[np.float64]
_NUMBER = re.compile(r"\d+")


def decision_rows(space: SearchSpace, points: Sequence[Values]) -> Matrix:
    """Return one row a point: of each decision its place among the candidates and the numbers in its value.

    They mean something within one space only.
    """
    rows = [[x for d in space.decisions for x in _numbers(d, values[d.name])] for values in points]
    return np.array(rows, dtype=np.float64)


def _numbers(decision: Decision, value: Value) -> list[float]:
    place = float(decision.candidates.index(value)) if value in decision.candidates else -1.0
    if isinstance(value, int):
        return [place, math.log2(max(value, 1))]
    if decision.name != "family" and all(_NUMBER.search(str(c)) for c in decision.candidates):
        numbers = [float(x) for x in _NUMBER.findall(value)]
        return [place, numbers[0], numbers[-1], math.prod(numbers)]
    return [place]


def block_row(values: Values, info: BlockInfo, hardware: Hardware) -> list[float] | None:
    """Return a point's features that mean the same for every operator of a rule; None when it is no blocking."""
    plan = plan_of(values, info)
    return None if plan is None else features_of(info, plan, hardware)


def block_of(told: dict[str, Any]) -> BlockInfo | None:
    """Return the block that a record tells of; None when it tells of none, or of another form."""
    try:
        return BlockInfo(name="", **told) if told else None
    except TypeError:
        return None


def told_of(info: BlockInfo) -> dict[str, Any]:
    """Return what a record keeps of a block: all that its features are made of."""
    kept = ("kind", "batch", "m", "n", "k", "a_dtype", "b_dtype", "acc_dtype", "out_dtype", "threads")
    flags = ("transpose_a", "transpose_b", "batch_a", "batch_b", "constant_b")
    told = {name: getattr(info, name) for name in (*kept, *flags)}
    return told if info.window is None else {**told, "window": asdict(info.window)}
