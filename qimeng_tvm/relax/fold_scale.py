"""What scales and shifts channels after a convolution becomes part of its filters and its bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.constants import Array, value_of
from qimeng_tvm.relax.rewriting import CountingRewriter, rewriting_pass, shape_of

_CONVOLUTIONS = ("relax.nn.conv2d", "relax.nn.conv2d_transpose")
_OPERATORS = ("relax.add", "relax.subtract", "relax.multiply", "relax.divide")


def fold_scale() -> tvm.transform.Pass:
    """Return the pass that folds constant scales and shifts of channels into convolutions with constant filters.

    Batch normalization comes as subtract, divide, multiply and add: one addition is left, which becomes an epilogue.
    """
    return rewriting_pass("qimeng.FoldScale", _FoldScale)


@dataclass(frozen=True)
class _Shifted:
    """``convolution + shift``; no shift is None."""

    convolution: relax.Call
    shift: Array | None


@mutator
class _FoldScale(CountingRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.once = False

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Note whether the operands are used here only, while they are those that were counted."""
        self.once = all(self.uses[x] == 1 for x in call.args if isinstance(x, relax.Var))
        return super().visit_call_(call)

    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name not in _OPERATORS or not self.once:
            return call
        left, right = call.args
        shifted, constant = self._shifted(left), value_of(self.bound(right))
        if shifted is None and name in ("relax.add", "relax.multiply"):
            shifted, constant = self._shifted(right), value_of(self.bound(left))
        if shifted is None or constant is None:
            return call
        channels = _of_channels(constant, shape_of(call))
        if channels is None:
            return call
        if name == "relax.add":
            return self._sum(shifted, 1.0, channels)
        if name == "relax.subtract":
            return self._sum(shifted, 1.0, -channels)
        return self._sum(shifted, channels if name == "relax.multiply" else 1 / channels, None)

    def _shifted(self, operand: relax.Expr) -> _Shifted | None:
        """Take a convolution, or one with a shift, apart."""
        add = self.made_by(operand, "relax.add")
        shift = value_of(self.bound(add.args[1])) if add is not None else None
        convolution = self.bound(add.args[0]) if add is not None and shift is not None else self.bound(operand)
        if not isinstance(convolution, relax.Call) or not isinstance(convolution.op, tvm.ir.Op):
            return None
        if str(convolution.op.name) not in _CONVOLUTIONS or str(convolution.attrs.out_layout)[-1] != "C":
            return None
        if str(convolution.op.name) == "relax.nn.conv2d_transpose" and int(convolution.attrs.groups) > 1:
            return None  # its filters are told by group and by their number in it
        filters = value_of(self.bound(convolution.args[1]))
        if filters is None or filters.dtype != np.float32 or str(convolution.ty.dtype) != "float32":
            return None
        if shift is None:
            return _Shifted(convolution, None)
        channels = _of_channels(shift, shape_of(convolution))
        return None if channels is None else _Shifted(convolution, channels)

    def _sum(self, shifted: _Shifted, scale: Array | float, more: Array | None) -> relax.Expr:
        """Return ``(convolution + shift) * scale + more`` as a convolution and one addition."""
        convolution, shift = shifted.convolution, shifted.shift
        if not isinstance(scale, float):
            convolution = self._scaled(convolution, scale)
            shift = None if shift is None else shift * scale
        if more is not None:
            shift = more if shift is None else shift + more
        convolution = self.builder_.normalize(convolution)
        if shift is None:
            return convolution
        return relax.op.add(self.builder_.emit(convolution), relax.const(shift.astype("float32")))

    def _scaled(self, convolution: relax.Call, scale: Array) -> relax.Call:
        """Return a convolution whose filters are scaled, each by its own factor."""
        data, weight = convolution.args
        filters, layout = value_of(self.bound(weight)), str(convolution.attrs.kernel_layout)
        assert filters is not None  # _shifted() has looked
        factors = np.expand_dims(scale, [a for a, name in enumerate(layout) if name != "O"])
        scaled = relax.const((filters * factors).astype("float32"))
        return relax.Call(convolution.op, [data, scaled], convolution.attrs)


def _of_channels(constant: Array, shape: tuple[int, ...] | None) -> Array | None:
    """Return a constant that is broadcast over pixels as one number a channel, None when it is something else."""
    if shape is None or constant.dtype != np.float32 or constant.ndim > len(shape):
        return None
    if constant.size != 1 and (constant.ndim == 0 or constant.size != constant.shape[-1]):
        return None
    return np.broadcast_to(constant.reshape(-1), (shape[-1],)).astype("float64")
