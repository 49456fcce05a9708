"""Softmax and instance norm as loops over rows: reductions of whole vectors, one division a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import relax, te, tirx
from tvm.ir import Expr

from qimeng_tvm.relax.legalize.images import stock
from qimeng_tvm.relax.rewriting import shape_of

#: Columns that rows which do not divide well are filled up to a multiple of: a vector of any machine.
_WHOLE = 16
#: Longest row that is left as it is, and the least divisor that makes partial results worth while.
_SHORT, _LEAST = 64, 8


def _filled(columns: int) -> int:
    """Return how many columns to reduce: more than there are, where those cannot be split into vectors evenly."""
    divides = any(columns % width == 0 for width in range(_LEAST, _SHORT + 1))
    return columns if columns <= _SHORT or divides else math.ceil(columns / _WHOLE) * _WHOLE


def _reduced(
    rows: Sequence[int], columns: int, combine: Callable[..., Expr], value: Callable[..., Expr], fill: Expr, name: str
) -> te.Tensor:
    """Reduce ``value(*row, column)``; columns that are not there count as ``fill``."""
    k = te.reduce_axis((0, _filled(columns)), name="k")

    def at(*row: Expr) -> Expr:
        inside = value(*row, k)
        return combine(inside if _filled(columns) == columns else tirx.if_then_else(k < columns, inside, fill), axis=k)

    return te.compute(tuple(rows), at, name=name)


def softmax(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.nn.softmax`` over the last axis as a call of loops."""
    shape = _last_axis(call)
    if shape is None:
        return stock(builder, call)
    *rows, columns = shape

    def loops(x: te.Tensor) -> te.Tensor:
        top = _reduced(rows, columns, te.max, lambda *i: x[i], tirx.min_value(x.dtype), "softmax_max")
        power = te.compute(tuple(shape), lambda *i: tirx.exp(x[i] - top[i[:-1]]), name="softmax_exp")
        total = _reduced(rows, columns, te.sum, lambda *i: power[i], tirx.const(0, x.dtype), "softmax_sum")
        part = te.compute(tuple(rows), lambda *i: tirx.const(1, x.dtype) / total[i], name="softmax_part")
        return te.compute(tuple(shape), lambda *i: power[i] * part[i[:-1]], name="softmax")

    return builder.call_te(loops, call.args[0], primfunc_name_hint="softmax")


def _last_axis(call: relax.Call) -> tuple[int, ...] | None:
    """Return the shape of a float32 operand whose last of several axes a call works along; None for another."""
    shape = shape_of(call.args[0])
    if shape is None or len(shape) < 2 or 0 in shape or str(call.args[0].ty.dtype) != "float32":
        return None
    return shape if int(call.attrs.axis) in (-1, len(shape) - 1) else None


def instance_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.nn.instance_norm`` of channels that are stored apart as a call of loops.

    The variance is that of what is left of the mean, not a difference of squares, which loses all its digits where
    the mean is large.
    """
    shape, axis = shape_of(call.args[0]), int(call.attrs.channel_axis)
    axes = [int(a) % len(shape) for a in call.attrs.axes] if shape else []
    if shape is None or axis != 1 or axes != list(range(2, len(shape))) or str(call.ty.dtype) != "float32":
        return stock(builder, call)
    rows, inner = shape[:2], shape[2:]
    if not inner or 0 in shape:
        return stock(builder, call)
    count, epsilon = math.prod(inner), float(call.attrs.epsilon)

    def loops(x: te.Tensor, gamma: te.Tensor, beta: te.Tensor) -> te.Tensor:
        def total(value: Callable[..., Expr], name: str) -> te.Tensor:
            k = [te.reduce_axis((0, extent)) for extent in inner]
            return te.compute(rows, lambda n, c: te.sum(value(n, c, *k), axis=k), name=name)

        def left(*i: Expr) -> Expr:
            return x[i] - mean[i[:2]]

        added = total(lambda *i: x[i], "norm_sum")
        mean = te.compute(rows, lambda *i: added[i] / tirx.const(count, x.dtype), name="norm_mean")
        squares = total(lambda *i: left(*i) * left(*i), "norm_squares")
        scale = te.compute(
            rows,
            lambda n, c: (
                gamma[c] * tirx.rsqrt(squares[n, c] / tirx.const(count, x.dtype) + tirx.const(epsilon, x.dtype))
            ),
            name="norm_scale",
        )
        return te.compute(shape, lambda *i: left(*i) * scale[i[:2]] + beta[i[1]], name="instance_norm")

    return builder.call_te(loops, *call.args, primfunc_name_hint="instance_norm")
