"""Quantized models: products and convolutions between DequantizeLinear and QuantizeLinear on integers.

A sum of (q - z) w is one of q w, less z times the sum of w, which is constant. Scales come after it, in float32: they,
what else is elementwise, and the next quantization become the epilogue. What does not fit keeps its meaning in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.constants import Array, value_of
from qimeng_tvm.relax.integers import byte_products
from qimeng_tvm.relax.rewriting import Rewriter, axes_of, rewriting_pass, shape_of
from qimeng_tvm.relax.scale_chains import fold_scale_chains

_QUANTIZE, _DEQUANTIZE = "relax.quantize", "relax.dequantize"
_PLAIN, _TRANSPOSED = "relax.nn.conv2d", "relax.nn.conv2d_transpose"
_BYTES = ("int8", "uint8")
#: Operators that give elements of their operand: on integers they are the same.
_CHOOSE = frozenset(
    f"relax.{name}" for name in "expand_dims flatten nn.max_pool2d permute_dims reshape squeeze strided_slice".split()
)
#: Largest magnitude of a byte, and that of a sum.
_BYTE, _SUM = 255, 2**31 - 1
#: 1.5 * 2^23: what is added to it is rounded to an integer, half to even.
_MAGIC = 12582912.0
#: Scales from here on have a reciprocal.
_SMALLEST_SCALE = 2.0**-100


def integer_contractions() -> list[tvm.transform.Pass]:
    """Return the passes that compute quantized products and convolutions on integers, and spell out all other scales.

    Activations are bytes with one scale and zero point; weights are constant, with a scale for each column or filter,
    or both operands are activations without zero points.
    """
    return [
        byte_products(),
        rewriting_pass("qimeng.IntegerContractions", _Integers),
        rewriting_pass("qimeng.SpellOutScales", _SpellOut),
        relax.transform.DeadCodeElimination(),  # what is scaled where it is read is read there alone
        fold_scale_chains(),
        relax.transform.DeadCodeElimination(),
    ]


@dataclass(frozen=True)
class _Scaled:
    """An activation: ``(data - zero) * scale``."""

    data: relax.Expr
    scale: np.float32
    zero: int


class _Reader(Rewriter):
    """What both passes read."""

    def scaled(self, operand: relax.Expr) -> _Scaled | None:
        """Return what an operand was dequantized from, bytes with one scale; None for all else."""
        made = self.made_by(operand, _DEQUANTIZE)
        single = self.single(made) if made is not None else None
        if made is None or single is None or str(made.args[0].ty.dtype) not in _BYTES:
            return None
        return _Scaled(made.args[0], *single) if str(made.ty.dtype) == "float32" else None

    def single(self, call: relax.Call) -> tuple[np.float32, int] | None:
        """Return the scale and zero point of a call that has one of each, and they are constant."""
        scale, zero = (value_of(self.bound(x)) for x in call.args[1:3])
        if scale is None or zero is None or scale.size != 1 or zero.size != 1 or scale.dtype != np.float32:
            return None
        found = np.float32(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
        return found if found[0] >= _SMALLEST_SCALE else None

    def constant(self, call: relax.Call) -> tuple[Array, Array] | None:
        """Return a dequantized constant as integers without a zero point, and their scales, each as large."""
        data, scale, zero = (value_of(self.bound(x)) for x in call.args[:3])
        if data is None or scale is None or zero is None:
            return None
        if data.dtype.kind not in "iu" or str(call.ty.dtype) != "float32":
            return None
        axis = int(call.attrs.axis)
        scale, zero = (_along(x, axis, data.ndim) for x in (scale, zero))
        return data.astype("int64") - zero.astype("int64"), np.broadcast_to(scale, data.shape)


def _along(values: Array, axis: int, rank: int) -> Array:
    """Return scales of an axis as they are broadcast over a tensor."""
    if values.size == 1:
        return values.reshape((1,) * rank)
    shape = [1] * rank
    shape[axis] = values.size
    return values.reshape(shape)


@mutator
class _Integers(_Reader):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        found = None
        if name in _CHOOSE:
            found = self._chosen(call)
        elif name == _QUANTIZE:
            found = self._again(call)
        elif name == "relax.matmul" and str(call.ty.dtype) == "float32":
            found = self._product(call)
        elif name in (_PLAIN, _TRANSPOSED) and str(call.ty.dtype) == "float32":
            found = self._convolution(call)
        return call if found is None else found

    def _chosen(self, call: relax.Call) -> relax.Expr | None:
        """Choose elements while they are integers."""
        source = self.scaled(call.args[0])
        if source is None or value_of(self.bound(source.data)) is not None:
            return None
        data = self.builder_.emit(relax.Call(call.op, [source.data, *call.args[1:]], call.attrs))
        return relax.op.dequantize(data, *_parameters(source), axis=0)

    def _again(self, call: relax.Call) -> relax.Expr | None:
        """Drop a quantization to what there was before."""
        source, single = self.scaled(call.args[0]), self.single(call)
        if source is None or single != (source.scale, source.zero) or call.ty.dtype != source.data.ty.dtype:
            return None
        return source.data

    def _product(self, call: relax.Call) -> relax.Expr | None:
        left, (right, weights) = self.scaled(call.args[0]), (self.scaled(call.args[1]), self._weights(call.args[1]))
        if left is None or len(shape_of(left.data) or ()) < 2:
            return None
        if weights is not None and weights[0].ndim == 2:
            values, scales = weights
            row = scales[0]
            if (scales != row).any() or not _fits(values, 0):
                return None
            product = self._summed(relax.op.matmul(left.data, relax.const(values), out_dtype="int32"))
            return self._rescaled(product, left.zero * values.sum(0, dtype="int64"), row * left.scale)
        symmetric = right is not None and left.zero == right.zero == 0 and str(right.data.ty.dtype) == "int8"
        shape = shape_of(right.data) if right is not None and symmetric else None
        if right is None or shape is None or len(shape) < 2 or shape[-2] * _BYTE * _BYTE > _SUM:
            return None
        product = self._summed(relax.op.matmul(left.data, right.data, out_dtype="int32"))
        return self._rescaled(product, np.zeros((), "int64"), np.asarray(left.scale * right.scale))

    def _convolution(self, call: relax.Call) -> relax.Expr | None:
        """Convolve, plainly or transposed, on integers."""
        source, weights, attrs = self.scaled(call.args[0]), self._weights(call.args[1]), call.attrs
        if source is None or weights is None or shape_of(source.data) is None:
            return None
        layout, out = str(attrs.kernel_layout), str(attrs.out_layout)
        transposed = str(call.op.name) == _TRANSPOSED
        if transposed and int(attrs.groups) != 1:
            return None
        axis = layout.index("O")
        others = tuple(i for i in range(4) if i != axis)
        values, scales = weights
        if (scales.max(others) != scales.min(others)).any() or not _fits(values, others):
            return None
        convolve, more = relax.op.nn.conv2d, {}
        if transposed:
            convolve, more = relax.op.nn.conv2d_transpose, {"output_padding": [int(x) for x in attrs.output_padding]}
        sums = self._summed(
            convolve(
                source.data,
                relax.const(values),
                strides=[int(x) for x in attrs.strides],
                padding=[int(x) for x in attrs.padding],
                dilation=[int(x) for x in attrs.dilation],
                groups=int(attrs.groups),
                data_layout=str(attrs.data_layout),
                kernel_layout=layout,
                out_layout=out,
                out_dtype="int32",
                **more,
            )
        )
        taps = values.transpose([layout.index(x) for x in "HWIO"]).sum(2, dtype="int64")
        order = ["NHWC".index(x) for x in out]
        shifts = source.zero * (_seen(call, taps, transposed=transposed) if source.zero else taps[:1, :1])[None]
        factors = scales.max(others).reshape(1, 1, 1, -1) * source.scale
        return self._rescaled(sums, shifts.transpose(order), factors.transpose(order))

    def _weights(self, operand: relax.Expr) -> tuple[Array, Array] | None:
        """Return constant weights as signed bytes without a zero point, and their scales; None if they are not that."""
        made = self.bound(operand)
        if not isinstance(made, relax.Call) or not isinstance(made.op, tvm.ir.Op):
            return None
        name, found = str(made.op.name), None
        if name == _DEQUANTIZE:
            found = self.constant(made)
            if found is None or found[0].min() < -128 or found[0].max() > 127:
                return None
            return found[0].astype("int8"), found[1]
        if name in ("relax.permute_dims", "relax.reshape"):
            found = self._weights(made.args[0])
        if found is None:
            return None
        moved = [
            x.transpose(axes_of(made)) if name == "relax.permute_dims" else x.reshape(shape_of(made)) for x in found
        ]
        return np.ascontiguousarray(moved[0]), moved[1]

    def _summed(self, product: relax.Expr) -> relax.Expr:
        return self.builder_.emit(product)

    def _rescaled(self, sums: relax.Expr, shift: Array, factor: Array) -> relax.Expr:
        """Return ``(sums - shift) * factor`` in float32."""
        if shift.any():
            sums = self.builder_.emit(relax.op.subtract(sums, relax.const(shift.astype("int32"))))
        real = self.builder_.emit(relax.op.astype(sums, "float32"))
        return relax.op.multiply(real, relax.const(factor.astype("float32")))


def _parameters(source: _Scaled) -> tuple[relax.Expr, relax.Expr]:
    """Return scale and zero point as ``dequantize`` takes them."""
    zero = np.asarray(source.zero, str(source.data.ty.dtype))
    return relax.const(np.asarray(source.scale, "float32")), relax.const(zero)


def _fits(values: Array, reduced: Any) -> bool:
    """Tell whether sums of products with bytes stay in int32, whatever the bytes."""
    return int(np.abs(values.astype("int64")).sum(reduced).max()) * _BYTE <= _SUM


def _seen(call: relax.Call, taps: Array, *, transposed: bool) -> Array:
    """Return, for each output pixel, the sum of the weights that see a pixel of the input: (H, W, O).

    Where no border is added, and all of them do, that is the same everywhere, and the result has one pixel.
    """
    attrs = call.attrs
    if not transposed and not any(int(p) for p in attrs.padding):
        whole: Array = taps.sum((0, 1))
        return whole[None, None]
    inside = []
    for n, axis in enumerate("HW"):
        extent = (shape_of(call.args[0]) or ())[str(attrs.data_layout).index(axis)]
        pixels = np.arange((shape_of(call) or ())[str(attrs.out_layout).index(axis)])
        step, before = int(attrs.strides[n]), int(attrs.padding[n])
        tap = np.arange(taps.shape[n])[:, None] * int(attrs.dilation[n])
        # Between two pixels of a transposed convolution's input lie those that are none.
        at = pixels + before - tap if transposed else (pixels * step - before) + tap
        apart = step if transposed else 1
        inside.append(((at >= 0) & (at % apart == 0) & (at // apart < extent)).astype("int64"))
    seen: Array = np.einsum("ry,sx,rso->yxo", *inside, taps, optimize=True)
    return seen


@mutator
class _SpellOut(_Reader):
    """Scales as operators that every pass knows; a value is scaled where it is read, so that it joins that function."""

    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name == _DEQUANTIZE:
            found = self.constant(call)
            return call if found is None else relax.const((found[0] * found[1].astype("float64")).astype("float32"))
        operands = [self._read(x) for x in call.args]
        if name == _QUANTIZE:
            return self._quantized(relax.Call(call.op, operands, call.attrs), str(call.ty.dtype))
        if all(new is old for new, old in zip(operands, call.args, strict=True)):
            return call
        return relax.Call(call.op, operands, call.attrs, call.ty_args)

    def _read(self, operand: relax.Expr) -> relax.Expr:
        if isinstance(operand, relax.Tuple):
            fields = [self._read(x) for x in operand.fields]
            same = all(new is old for new, old in zip(fields, operand.fields, strict=True))
            return operand if same else relax.Tuple(fields)
        source = self.scaled(operand) if isinstance(operand, relax.Var) else None
        if source is None:
            return operand
        real = self.builder_.emit(relax.op.astype(source.data, "float32"))
        if source.zero:
            real = self.builder_.emit(relax.op.subtract(real, _number(source.zero)))
        return self.builder_.emit(relax.op.multiply(real, _number(source.scale)))

    def _quantized(self, call: relax.Call, dtype: str) -> relax.Expr:
        single, real = self.single(call), call.args[0]
        if single is None or dtype not in _BYTES or str(real.ty.dtype) != "float32":
            return call
        (scale, zero), limits = single, np.iinfo(dtype)
        emit, op = self.builder_.emit, relax.op
        value = emit(op.multiply(real, _number(np.float32(1) / scale)))
        # Limits first: what is rounded by the sum must be small. They also keep the sum apart from a convolution's.
        value = emit(op.maximum(value, _number(limits.min - zero)))
        value = emit(op.minimum(value, _number(limits.max - zero)))
        # Two sums: TVM takes ``x + c - c`` for x.
        value = emit(op.add(value, _number(_MAGIC)))
        value = emit(op.add(value, _number(zero - _MAGIC)))
        return op.astype(value, dtype)


def _number(value: Any) -> relax.Expr:
    return relax.const(np.asarray(value, "float32"))
