"""Convolutions of single pixels: matrix products."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.constants import value_of
from qimeng_tvm.relax.rewriting import Rewriter, rewriting_pass, shape_of

#: Types that are summed up in a wider one.
_NARROW = ("bfloat16", "float16")


def pointwise() -> tvm.transform.Pass:
    """Return the pass that makes a convolution of single pixels a product of two matrices."""
    return rewriting_pass("qimeng.Pointwise", _Pointwise)


@mutator
class _Pointwise(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name != "relax.nn.conv2d" or None in (shape_of(x) for x in (*call.args, call)):
            return call
        attrs = call.attrs
        plain = int(attrs.groups) == 1 and not any(int(p) for p in attrs.padding)
        last = str(attrs.data_layout) == "NHWC" and str(attrs.out_layout) == "NHWC"
        return self._pixels(call) if plain and last else call

    def _pixels(self, call: relax.Call) -> relax.Expr:
        """Return a convolution of single pixels as a product."""
        data, weight = call.args
        out, layout = shape_of(call), str(call.attrs.kernel_layout)
        if out is None or _extents(weight, layout, "HW") != [1, 1]:
            return call
        steps = [int(s) for s in call.attrs.strides]
        if steps != [1, 1]:
            ends = [(extent - 1) * step + 1 for extent, step in zip(out[1:3], steps, strict=True)]
            data = self.builder_.emit(relax.op.strided_slice(data, [1, 2], [0, 0], ends, steps))
        matrix = self._matrix(weight, layout)
        return relax.op.reshape(self._product(data, matrix, str(call.ty.dtype)), out)

    def _matrix(self, weight: relax.Expr, layout: str) -> relax.Expr:
        """Return filters as a matrix of one row a channel."""
        axes, shape = [layout.index(x) for x in "HWIO"], _extents(weight, layout, "IO")
        value = value_of(self.bound(weight))
        if value is not None:
            return relax.const(np.ascontiguousarray(value.transpose(axes).reshape(shape)))
        ordered = weight if axes == [0, 1, 2, 3] else self.builder_.emit(relax.op.permute_dims(weight, axes))
        return self.builder_.emit(relax.op.reshape(ordered, shape))

    def _product(self, data: relax.Expr, matrix: relax.Expr, dtype: str) -> relax.Expr:
        """Return the product of all pixels with a matrix."""
        shape = shape_of(data)
        assert shape is not None  # the caller has looked
        pixels = self.builder_.emit(relax.op.reshape(data, (shape[0] * shape[1] * shape[2], shape[3])))
        wide = "float32" if dtype in _NARROW else dtype
        product = self.builder_.emit(relax.op.matmul(pixels, matrix, out_dtype=wide))
        return product if wide == dtype else self.builder_.emit(relax.op.astype(product, dtype))


def _extents(weight: relax.Expr, layout: str, axes: str) -> list[int]:
    """Return the extents of filters along these axes."""
    shape = shape_of(weight)
    assert shape is not None  # the caller has looked
    return [shape[layout.index(x)] for x in axes]
