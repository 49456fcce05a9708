"""Softmax as loops over rows: reductions of whole vectors, one division a row."""

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


def filled(columns: int) -> int:
    """Return how many columns to reduce: more than there are, where those cannot be split into vectors evenly."""
    divides = any(columns % width == 0 for width in range(_LEAST, _SHORT + 1))
    return columns if columns <= _SHORT or divides else math.ceil(columns / _WHOLE) * _WHOLE


def _reduced(
    rows: Sequence[int], columns: int, combine: Callable[..., Expr], value: Callable[..., Expr], fill: Expr, name: str
) -> te.Tensor:
    """Reduce ``value(*row, column)``; columns that are not there count as ``fill``."""
    k = te.reduce_axis((0, filled(columns)), name="k")

    def at(*row: Expr) -> Expr:
        inside = value(*row, k)
        return combine(inside if filled(columns) == columns else tirx.if_then_else(k < columns, inside, fill), axis=k)

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
