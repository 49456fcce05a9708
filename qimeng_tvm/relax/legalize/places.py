"""The place of a row's largest or smallest element: two reductions, of values and of places, which run in vectors.

One reduction of pairs would not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import relax, te, tirx
from tvm.ir import Expr

from qimeng_tvm.relax.legalize.images import stock
from qimeng_tvm.relax.legalize.rows import filled
from qimeng_tvm.relax.rewriting import shape_of

#: Types of elements that are compared as they are.
_FLOATS = ("float32", "float64")
_ORDERED = (*_FLOATS, "int8", "uint8", "int32", "int64")
#: Compared as float32.
_HALVES = ("bfloat16", "float16")
#: Places are compared as numbers of this type, which is exact up to there.
_PLACE, _MOST = "float32", 1 << 24


@dataclass(frozen=True)
class _Search:
    """Which elements are looked at for each result.

    Attributes
    ----------
    shape : tuple of int
        Of the tensor.
    axis : int
        What the place counts.
    keepdims : bool
        Whether the result has that axis, of one element.
    dtype, out_dtype : str
        What elements are compared in, and of the result.
    largest : bool
        Whether it is the largest that is looked for.
    """

    shape: tuple[int, ...]
    axis: int
    keepdims: bool
    dtype: str
    out_dtype: str
    largest: bool

    @property
    def rows(self) -> tuple[int, ...]:
        """Extents of the other axes."""
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

    @property
    def count(self) -> int:
        """Elements of a row."""
        return self.shape[self.axis]

    def loops(self, x: te.Tensor) -> te.Tensor:
        """Return the places: of the first of the best, or of the first that is no number, as PyTorch has it."""
        worst = tirx.min_value(self.dtype) if self.largest else tirx.max_value(self.dtype)

        def number(value: Expr, _row: Sequence[Expr], _place: Expr) -> Expr:
            # What is no number would hide those before it.
            return tirx.Select(self._better(value, worst), value, worst) if self.dtype in _FLOATS else value

        best = self._over(x, te.max if self.largest else te.min, number, worst, "best")

        def rank(value: Expr, row: Sequence[Expr], place: Expr) -> Expr:
            # No number: its place. The best: that and a row's length. All others: more.
            other = tirx.const(2 * self.count, _PLACE)
            if self.dtype in _FLOATS:
                other = tirx.Select(self._better(best(*row), value), other, place)
            return tirx.Select(tirx.EQ(value, best(*row)), place + tirx.const(self.count, _PLACE), other)

        first = self._over(x, te.min, rank, tirx.max_value(_PLACE), "place")

        def result(*at: Expr) -> Expr:
            row = at[: self.axis] + at[self.axis + 1 :] if self.keepdims else at
            # Where all are infinitely bad none is the best, and the first is the place.
            return tirx.floormod(first(*row).astype("int32"), self.count).astype(self.out_dtype)

        out = (*self.shape[: self.axis], 1, *self.shape[self.axis + 1 :]) if self.keepdims else self.rows
        return te.compute(out, result, name="found")

    def _better(self, a: Expr, b: Expr) -> Expr:
        return a > b if self.largest else a < b

    def _over(
        self, x: te.Tensor, combine: Callable[..., Expr], value: Callable[..., Expr], fill: Expr, name: str
    ) -> te.Tensor:
        """Reduce ``value(element, row, place)`` of each row; columns that are not there count as ``fill``."""
        k = te.reduce_axis((0, filled(self.count)), name="k")

        def element(*row: Expr) -> Expr:
            inside = value(x(*row[: self.axis], k, *row[self.axis :]).astype(self.dtype), row, k.var.astype(_PLACE))
            whole = filled(self.count) == self.count
            return combine(inside if whole else tirx.if_then_else(k < self.count, inside, fill), axis=k)

        return te.compute(self.rows, element, name=name)


def argmax(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.argmax`` as a call of loops."""
    return _searched(builder, call, largest=True)


def argmin(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.argmin`` as a call of loops."""
    return _searched(builder, call, largest=False)


def _searched(builder: relax.BlockBuilder, call: relax.Call, *, largest: bool) -> relax.Expr:
    data, name = call.args[0], "argmax" if largest else "argmin"
    shape, out, dtype, out_dtype = shape_of(data), shape_of(call), str(data.ty.dtype), str(call.ty.dtype)
    dtype = "float32" if dtype in _HALVES else dtype
    if not shape or out is None or 0 in shape or dtype not in _ORDERED:
        return stock(builder, call)
    axis = None if call.attrs.axis is None else int(call.attrs.axis) % len(shape)
    if axis is None or len(shape) == 1:
        # One row, and one result.
        if 2 * math.prod(shape) > _MOST:
            return stock(builder, call)
        row = (1, math.prod(shape))
        one = _Search(row, 1, False, dtype, out_dtype, largest)
        place = builder.call_te(one.loops, builder.emit(relax.op.reshape(data, row)), primfunc_name_hint=name)
        return relax.op.reshape(builder.emit(place), out)
    if 2 * shape[axis] > _MOST:
        return stock(builder, call)
    search = _Search(shape, axis, bool(call.attrs.keepdims), dtype, out_dtype, largest)
    return builder.call_te(search.loops, data, primfunc_name_hint=name)
