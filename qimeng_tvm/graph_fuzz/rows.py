"""Draws of operators along axes: reductions, softmax, normalizations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qimeng_tvm.graph_fuzz.builder import Builder, Unfit

#: Operator sets from which axes are an operand and no attribute.
_AXES_OPERAND = {"ReduceSum": 13, "ReduceMean": 18, "ReduceMax": 18}

#: Variance of a row that is normalized.
_LEAST_SPREAD = 1e-2


def _reduction(b: Builder, op: str, x: str, axes: Sequence[int], keep: bool) -> str:
    if b.opset >= _AXES_OPERAND[op]:
        return b.add(op, [x, b.integers(axes)], keepdims=int(keep))
    return b.add(op, [x], axes=list(axes), keepdims=int(keep))


def reduce(b: Builder) -> str:
    """Add a reduction over some axes."""
    x = b.pick(lambda shape: len(shape) >= 2)
    rank = len(b.shape(x))
    axes = sorted(int(a) for a in b.rng.permutation(rank)[: b.choice((1, 1, 2))])
    keep = b.chance(0.6) or len(axes) == rank
    axes = [a - rank if b.chance(0.3) else a for a in axes]
    return _reduction(b, b.choice(tuple(_AXES_OPERAND)), x, axes, keep)


def softmax(b: Builder) -> str:
    """Add a softmax along any axis."""
    x = b.pick()
    rank = max(1, len(b.shape(x)))
    axis = -1 if b.chance(0.5) else int(b.rng.integers(-rank, rank))
    return b.add("Softmax", [x], axis=axis)


def layer_norm(b: Builder, x: str | None = None) -> str:
    """Add a layer normalization over the last axes."""
    x = b.pick(lambda shape: len(shape) >= 2) if x is None else x
    shape = b.shape(x)
    axis = -1 if b.chance(0.8) else len(shape) - b.choice((1, 2))
    over = shape[axis:]
    spread = b.values[x].var(tuple(range(len(shape) - len(over), len(shape))))
    if spread.min() < _LEAST_SPREAD:
        raise Unfit("what differs by roundings would be made large")
    operands = [x, b.positive(over), *([b.weight(over)] if b.chance(0.8) else [])]
    return b.add("LayerNormalization", operands, axis=axis, epsilon=1e-5)


def composed_norm(b: Builder) -> str:
    """Add a normalization as exporters write it: reductions and what is made of them."""
    x = b.pick(lambda shape: len(shape) >= 2 and shape[-1] > 2)
    centered = b.add("Sub", [x, _reduction(b, "ReduceMean", x, [-1], True)]) if b.chance(0.7) else x
    variance = _reduction(b, "ReduceMean", b.add("Mul", [centered, centered]), [-1], True)
    deviation = b.add("Sqrt", [b.add("Add", [variance, b.constant(np.asarray(1e-2))])])
    return b.add("Mul", [b.add("Div", [centered, deviation]), b.positive(b.shape(x)[-1:])])
