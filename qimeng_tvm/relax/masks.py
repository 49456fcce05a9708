"""Masks and places that a model works out of shapes alone become constants, and nothing where they mask nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import GenericConst
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.constants import MOVES, Array, constant
from qimeng_tvm.relax.rewriting import Rewriter, rewriting_pass, shape_of

#: Elements of the largest result that becomes a constant of the model.
_MOST = 1 << 22
#: Operators of masks: the operands' values give the result.
_MASKS: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {
        "relax.greater": np.greater,
        "relax.greater_equal": np.greater_equal,
        "relax.less": np.less,
        "relax.less_equal": np.less_equal,
        "relax.equal": np.equal,
        "relax.not_equal": np.not_equal,
        "relax.logical_and": np.logical_and,
        "relax.logical_or": np.logical_or,
        "relax.logical_not": np.logical_not,
        "relax.bitwise_and": np.bitwise_and,
        "relax.bitwise_or": np.bitwise_or,
        "relax.where": np.where,
    }
)
#: Of whole numbers only: sums of floats are the business of :mod:`qimeng_tvm.relax.constants`.
_WHOLE: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {"relax.add": np.add, "relax.subtract": np.subtract, "relax.multiply": np.multiply}
)


def fold_masks() -> tvm.transform.Pass:
    """Return the pass that computes masks of constants and shapes, and drops additions of those that mask nothing."""
    return rewriting_pass("qimeng.FoldMasks", _FoldMasks)


@mutator
class _FoldMasks(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        shape = shape_of(call)
        if shape is None or math.prod(shape) > _MOST:
            return call
        value = self.value(call, name, shape)
        if value is not None:
            return constant(value, str(call.ty.dtype))
        return self.without_zeros(call, shape) if name == "relax.add" else call

    def value(self, call: relax.Call, name: str, shape: tuple[int, ...]) -> Array | None:
        """Return the value of a call that is known; None for all others."""
        if name == "relax.arange":
            ends = [int(x) for x in call.args if isinstance(x, tirx.IntImm)]
            return np.arange(*ends) if len(ends) == len(call.args) else None
        moves = name in MOVES or name in ("relax.broadcast_to", "relax.astype")
        if not (moves or name in _MASKS or name in _WHOLE):
            return None
        operands = [self.known(x) for x in (call.args[:1] if moves else call.args)]
        if any(x is None for x in operands):
            return None
        return _computed(call, name, shape, [x for x in operands if x is not None])

    def known(self, operand: relax.Expr) -> Array | None:
        """Return an operand's value where it is a constant of a type that NumPy has, and small."""
        expr = self.bound(operand)
        shape = shape_of(expr) if isinstance(expr, GenericConst) else None
        if shape is None or math.prod(shape) > _MOST:
            return None
        value = expr.value.numpy()
        return value if value.dtype.kind in "biuf" else None

    def without_zeros(self, call: relax.Call, shape: tuple[int, ...]) -> relax.Expr:
        """Return the other operand of an addition of zeros."""
        for mine, other in (call.args, reversed(call.args)):
            value = self.known(other)
            alike = shape_of(mine) == shape and str(mine.ty.dtype) == str(call.ty.dtype)
            if alike and value is not None and not value.any():
                return mine
        return call


def _computed(call: relax.Call, name: str, shape: tuple[int, ...], operands: list[Array]) -> Array | None:
    """Return what an operator makes of values; None where that is not a mask's or a place's business."""
    first: Any = operands[0]
    if name in _MASKS:
        return np.asarray(_MASKS[name](*operands))
    if name in _WHOLE:
        return np.asarray(_WHOLE[name](*operands)) if all(x.dtype.kind in "biu" for x in operands) else None
    if first.dtype.kind == "f" and name in ("relax.permute_dims", "relax.astype"):
        return None  # weights: they are turned, and rounded, where operators want them so
    if name == "relax.broadcast_to":
        return np.broadcast_to(first, shape)
    return first.astype(str(call.ty.dtype)) if name == "relax.astype" else MOVES[name](call, first)
