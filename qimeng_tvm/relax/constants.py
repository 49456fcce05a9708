"""What can be worked out of constants at once, without compiling anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.rewriting import Rewriter, axes_of, rewriting_pass, shape_of

Array = npt.NDArray[Any]

#: Operators that only move elements: the call and its operand's value give the result.
MOVES: Mapping[str, Callable[[relax.Call, Array], Array]] = MappingProxyType(
    {
        "relax.permute_dims": lambda call, x: x.transpose(axes_of(call)),
        "relax.reshape": lambda call, x: x.reshape(shape_of(call)),
        "relax.expand_dims": lambda call, x: x.reshape(shape_of(call)),
        "relax.squeeze": lambda call, x: x.reshape(shape_of(call)),
    }
)
_SUMS: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {
        "relax.add": np.add,
        "relax.subtract": np.subtract,
        "relax.multiply": np.multiply,
        "relax.divide": np.divide,
        "relax.sqrt": np.sqrt,
        "relax.rsqrt": lambda x: 1 / np.sqrt(x),
        "relax.negative": np.negative,
    }
)


def fold_arrangements() -> tvm.transform.Pass:
    """Return the pass that permutes and reshapes constants, and computes what normalization makes of them.

    ``FoldConstant`` would compile each of these operators for each shape.
    """
    return rewriting_pass("qimeng.FoldArrangements", _FoldArrangements)


def value_of(expr: relax.Expr) -> Array | None:
    """Return a constant's value, None for anything else."""
    return expr.value.numpy() if isinstance(expr, GenericConst) else None


def constant(value: Array, dtype: str) -> relax.Expr:
    """Return a constant of just that shape and type: Relax narrows whole numbers, NumPy makes single ones vectors."""
    return relax.const(np.array(value, order="C"), dtype)


@mutator
class _FoldArrangements(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name in MOVES:
            value = value_of(self.bound(call.args[0]))
            # A transposed matrix stays: products read it where it lies.
            if value is None or shape_of(call) is None or (name == "relax.permute_dims" and value.ndim == 2):
                return call
            return constant(MOVES[name](call, value), str(call.ty.dtype))
        if name not in _SUMS:
            return call
        operands = [value_of(self.bound(operand)) for operand in call.args]
        if any(x is None or x.dtype not in (np.float32, np.float64) for x in operands):
            return call
        return relax.const(np.asarray(_SUMS[name](*operands)).astype(str(call.ty.dtype)))
