"""Scales between sums of integers and their quantization: one factor and one shift where there were several.

A quantized model scales a sum, adds the bias, and divides by the scale of the result; a short cut is added in between,
rounded first. What comes after a small product costs as much as the product: each operator here is one of its epilogue.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.constants import Array, value_of
from qimeng_tvm.relax.rewriting import CountingRewriter, Rewriter, rewriting_pass, shape_of

#: Added and taken away again, this rounds: such a sum is not to be taken apart.
_ROUNDING = 2.0**22


def fold_scale_chains() -> tvm.transform.Pass:
    """Return the pass that multiplies constant factors and shifts, and reads what was rounded before it is bytes.

    Only scales of integers are changed, of values that nothing else reads.
    """
    return rewriting_pass("qimeng.FoldScaleChains", _FoldScaleChains)


@mutator
class _FoldScaleChains(CountingRewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        found = None
        if name == "relax.multiply":
            factor = _number(self, call.args[1])
            found = None if factor is None else self._scaled(call.args[0], factor)
        elif name == "relax.astype" and str(call.ty.dtype) == "float32":
            found = self._rounded(call.args[0])
        elif name == "relax.subtract":
            found = self._shifted(call)
        return call if found is None else found

    def _single(self, operand: relax.Expr, *names: str) -> relax.Call | None:
        """Return the call of one of these operators that made an operand that is read here alone."""
        if not isinstance(operand, relax.Var) or self.uses[operand] > 1:
            return None
        return next((made for n in names if (made := self.made_by(operand, f"relax.{n}")) is not None), None)

    def _scaled(self, operand: relax.Expr, factor: Array) -> relax.Expr | None:
        """Return ``operand * factor`` where that takes no operator more than the operand alone."""
        made = self._single(operand, "multiply", "add")
        if made is None:
            return None
        left, right = made.args
        constant = _number(self, right)
        if str(made.op.name) == "relax.multiply":
            known = constant is not None and self._whole(left)
            return relax.op.multiply(left, _constant(constant * factor)) if known else None
        if constant is not None and np.abs(constant).max() >= _ROUNDING:
            return None
        first = self._scaled(left, factor)
        if first is None:
            return None
        if constant is not None:
            return relax.op.add(self.builder_.emit(first), _constant(constant * factor))
        second = self._scaled(right, factor)
        return None if second is None else relax.op.add(self.builder_.emit(first), self.builder_.emit(second))

    def _whole(self, operand: relax.Expr) -> bool:
        """Tell whether an operand is integers in float32: in a model's own scales all rounding is as it is written."""
        cast = self.made_by(operand, "relax.astype")
        if cast is not None:
            return "int" in str(cast.args[0].ty.dtype)
        shifted = (self.made_by(operand, name) for name in ("relax.add", "relax.subtract"))
        moved = next((made for made in shifted if made is not None), None)
        constant = _number(self, moved.args[1]) if moved is not None else None
        if moved is None or constant is None:
            return False
        return bool(np.abs(constant).max() >= _ROUNDING) or self._whole(moved.args[0])

    def _rounded(self, operand: relax.Expr) -> relax.Expr | None:
        """Return the integers in float32 that bytes were made of, and are read as again."""
        made = self._single(operand, "astype")
        if made is None or str(made.ty.dtype) not in ("int8", "uint8"):
            return None
        total = self.made_by(made.args[0], "relax.add")
        constant = _number(self, total.args[1]) if total is not None else None
        return made.args[0] if constant is not None and np.abs(constant).max() >= _ROUNDING else None

    def _shifted(self, call: relax.Call) -> relax.Expr | None:
        """Take a zero point away while the number that rounds is."""
        total, zero = self._single(call.args[0], "add"), _number(self, call.args[1])
        constant = _number(self, total.args[1]) if total is not None else None
        if total is None or zero is None or constant is None or np.abs(constant).max() < _ROUNDING:
            return None
        return relax.op.add(total.args[0], _constant(constant - zero))


def _number(rewriter: Rewriter, operand: relax.Expr) -> Array | None:
    """Return a constant of float32, in more digits; a bias comes reshaped."""
    moved = rewriter.made_by(operand, "relax.reshape")
    value = value_of(rewriter.bound(operand if moved is None else moved.args[0]))
    if value is None or value.dtype != np.float32:
        return None
    return value.reshape(shape_of(operand)).astype("float64")


def _constant(value: Array) -> relax.Expr:
    return relax.const(value.astype("float32"))
