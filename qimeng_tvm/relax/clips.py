"""Limits that TVM's ONNX front end writes as loops at once, as the operator that they are.

No pass sees through loops: a convolution before them would not be fused with them, and its layout would end there.
"""

from __future__ import annotations

import math

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, te, tirx, topi
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.constants import value_of
from qimeng_tvm.relax.rewriting import Rewriter, rewriting_pass, shape_of

_LIMITS = {"maximum": topi.maximum, "minimum": topi.minimum}


def lift_clips() -> tvm.transform.Pass:
    """Return the pass that finds ``minimum(maximum(x, low), high)`` with constant limits in calls of loops."""
    return rewriting_pass("qimeng.LiftClips", _LiftClips)


@mutator
class _LiftClips(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name != "relax.call_tir" or not isinstance(call.args[1], relax.Tuple) or len(call.args[1]) != 2:
            return call
        data, bound = call.args[1]
        limit, shape = self._limit(bound), shape_of(call)
        if limit is None or shape is None or shape_of(data) != shape:
            return call
        kind = self._kind(call.args[0], data)
        if not kind:
            return call
        if kind == "maximum":
            return relax.op.clip(data, limit, math.inf)
        lower = self.made_by(data, "relax.clip")
        if lower is not None and math.isinf(float(lower.args[2].value)):
            return relax.op.clip(lower.args[0], float(lower.args[1].value), limit)
        return relax.op.clip(data, -math.inf, limit)

    def _limit(self, bound: relax.Expr) -> float | None:
        """Return a constant limit; the front end guards it against NaN, which means none."""
        value = value_of(self.bound(bound))
        guarded = self.made_by(bound, "relax.where")
        if value is None and guarded is not None:
            asked = self.made_by(guarded.args[0], "relax.isnan")
            known = value_of(self.bound(guarded.args[2]))
            if asked is None or known is None or known.size != 1:
                return None
            value = value_of(self.bound(guarded.args[1])) if np.isnan(known).any() else known
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def _kind(self, callee: tvm.ir.GlobalVar, data: relax.Expr) -> str:
        """Return which of the two a function is, by what it computes; empty when it is neither."""
        func, shape, dtype = self.mod[callee], shape_of(data), str(data.ty.dtype)
        if not isinstance(func, tirx.PrimFunc) or shape is None or dtype != "float32" or len(func.params) != 3:
            return ""
        second = [int(x) for x in func.params[1].shape]
        for kind, compute in _LIMITS.items():
            a, b = te.placeholder(shape, dtype), te.placeholder(second, dtype)
            wanted = te.create_prim_func([a, b, compute(a, b)], index_dtype_override="int64")
            if tvm_ffi.structural_equal(_bare(func), _bare(wanted), map_free_vars=True):
                return kind
        return ""


def _bare(func: tirx.PrimFunc) -> tirx.PrimFunc:
    for name in dict(func.attrs or {}):
        if name != "s_tir":
            func = func.without_attr(name)
    return func
