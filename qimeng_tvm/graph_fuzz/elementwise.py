"""Draws of elementwise operators."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qimeng_tvm.graph_fuzz.builder import Builder

_BINARY = ("Add", "Add", "Sub", "Mul", "Div")
_UNARY: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Relu", {}),
    ("Relu", {}),
    ("Sigmoid", {}),
    ("Tanh", {}),
    ("LeakyRelu", {"alpha": 0.125}),
    ("HardSwish", {}),
    ("HardSigmoid", {"alpha": 0.25, "beta": 0.5}),
    ("Elu", {"alpha": 0.75}),
    ("Erf", {}),
    ("Abs", {}),
    ("Neg", {}),
    ("Softplus", {}),
)
#: Operators that ONNX Runtime has in float64.
_WIDE = frozenset(("Relu", "Sigmoid", "Tanh", "Abs", "Neg"))


def activation(b: Builder, x: str | None = None) -> str:
    """Add an elementwise function."""
    x = b.pick() if x is None else x
    op, attributes = b.choice([u for u in _UNARY if b.dtype == "float32" or u[0] in _WIDE])
    return b.add(op, [x], **attributes)


def clip(b: Builder) -> str:
    """Add a clip, as ReLU6 is one."""
    low, high = b.choice(((0.0, 6.0), (-1.0, 1.0), (-0.5, 2.0)))
    return b.add("Clip", [b.pick(), b.constant(np.asarray(low)), b.constant(np.asarray(high))])


def binary(b: Builder) -> str:
    """Add an operator of two operands, the second a value that broadcasts, a constant, or the first itself."""
    x = b.pick()
    op = b.choice(_BINARY)
    draw = b.rng.random()
    if draw < 0.5:
        shape = b.shape(x)
        y = b.pick(lambda other: _broadcasts(other, shape))
        y = b.add("Add", [b.add("Sigmoid", [y]), b.constant(np.asarray(0.5))]) if op == "Div" else y
    else:
        shape = _smaller(b, b.shape(x))
        y = b.positive(shape) if op in ("Div", "Mul") else b.weight(shape)
    pair = [y, x] if op != "Div" and b.chance(0.3) else [x, y]
    return b.add(op, pair)


def _broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(reversed(a), reversed(b), strict=False))


def _smaller(b: Builder, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Draw a shape that broadcasts to another."""
    how = b.choice(("scalar", "channels", "row", "same", "some"))
    if how == "scalar":
        return ()
    if how == "channels" and len(shape) >= 3:
        return (shape[1], *[1] * (len(shape) - 2))
    if how == "row":
        return shape[-1:]
    if how == "some":
        return tuple(x if b.chance(0.5) else 1 for x in shape)
    return shape


def gelu(b: Builder, x: str | None = None) -> str:
    """Add a GELU: the operator where there is one, else as exporters write it."""
    x = b.pick() if x is None else x
    if b.opset >= 20 and b.chance(0.5):
        return b.add("Gelu", [x], approximate=b.choice(("none", "tanh")))
    inner = b.add("Erf", [b.add("Div", [x, b.constant(np.asarray(math.sqrt(2.0)))])])
    more = b.add("Add", [inner, b.constant(np.asarray(1.0))])
    if b.chance(0.5):
        return b.add("Mul", [b.add("Mul", [x, more]), b.constant(np.asarray(0.5))])
    return b.add("Mul", [b.add("Mul", [x, b.constant(np.asarray(0.5))]), more])


def swish(b: Builder, x: str | None = None) -> str:
    """Add a swish."""
    x = b.pick() if x is None else x
    return b.add("Mul", [x, b.add("Sigmoid", [x])])
