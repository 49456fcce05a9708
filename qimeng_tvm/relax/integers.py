"""Products of integers less their zero points, as ONNX's MatMulInteger comes, on the bytes themselves.

``(a - za) (b - zb)`` of constant b is ``a b'``, less za times the sums of the columns of ``b' = b - zb``: one product
of bytes, and an epilogue. The zero point of a may be known only at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.constants import Array, value_of
from qimeng_tvm.relax.rewriting import Rewriter, rewriting_pass, shape_of

_BYTES = ("int8", "uint8")
_SUM = "int32"
#: Largest magnitude of a byte, and that of a sum.
_BYTE, _MOST = 255, 2**31 - 1


def byte_products() -> tvm.transform.Pass:
    """Return the pass that takes products of widened bytes with constant ones on the bytes."""
    return rewriting_pass("qimeng.ByteProducts", _ByteProducts)


@dataclass(frozen=True)
class _Shifted:
    """``data - zero``: bytes, and what was subtracted after they were widened; None for nothing."""

    data: relax.Expr
    zero: relax.Expr | None


@mutator
class _ByteProducts(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name != "relax.matmul" or str(call.ty.dtype) != _SUM:
            return call
        left, values = self._shifted(call.args[0]), self._constant(call.args[1])
        if left is None or values is None or values.ndim != 2 or values.min() < -128 or values.max() > 127:
            return call
        if int(np.abs(values).sum(0).max()) * _BYTE > _MOST:
            return call
        product = relax.op.matmul(left.data, relax.const(values.astype("int8")), out_dtype=_SUM)
        if left.zero is None:
            return product
        sums = relax.const(values.sum(0, dtype="int64").astype(_SUM))
        # A scalar, or one a row of a: it goes along the columns.
        shift = self.builder_.emit(relax.op.multiply(sums, left.zero))
        return relax.op.subtract(self.builder_.emit(product), shift)

    def _shifted(self, operand: relax.Expr) -> _Shifted | None:
        """Return the bytes that an operand was widened from, and their zero point."""
        zero = None
        difference = self.made_by(operand, "relax.subtract")
        if difference is not None:
            operand, zero = difference.args
        wide = self.made_by(operand, "relax.astype")
        if wide is None or str(wide.args[0].ty.dtype) not in _BYTES or str(wide.ty.dtype) != _SUM:
            return None
        shape, shift = shape_of(wide.args[0]), shape_of(zero) if zero is not None else ()
        along = shape is not None and shift is not None and len(shape) > 1 and (not shift or shift[-1] == 1)
        return _Shifted(wide.args[0], zero) if along else None

    def _constant(self, operand: relax.Expr) -> Array | None:
        """Return the value of constant bytes less their constant zero point."""
        made = self.bound(operand)
        if not isinstance(made, relax.Call) or not isinstance(made.op, tvm.ir.Op):
            value = value_of(made)
            return value.astype("int64") if value is not None and value.dtype.kind in "iu" else None
        name = str(made.op.name)
        parts = [self._constant(x) for x in made.args] if name in ("relax.astype", "relax.subtract") else [None]
        if name in ("relax.expand_dims", "relax.reshape"):
            inner, shape = self._constant(made.args[0]), shape_of(made)
            return inner.reshape(shape) if inner is not None and shape is not None else None
        if parts[0] is None or parts[-1] is None or str(made.ty.dtype) != _SUM:
            return None
        return parts[0] if name == "relax.astype" else parts[0] - parts[-1]
