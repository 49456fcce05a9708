"""Transposed convolutions as convolutions whose filters each give one of the pixels that lie between two of the input.

With a stride of s, pixels of the output that lie s apart read the same taps. A convolution of the input gives all s x s
sorts of them, each as filters of its own, and the result is put apart: no multiplication with a stuffed zero is made.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.constants import Array, value_of
from qimeng_tvm.relax.rewriting import Rewriter, rewriting_pass, shape_of


def split_transposed() -> tvm.transform.Pass:
    """Return the pass that rewrites transposed convolutions of NHWC pixels with constant filters."""
    return rewriting_pass("qimeng.SplitTransposed", _SplitTransposed)


@mutator
class _SplitTransposed(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name != "relax.nn.conv2d_transpose":
            return call
        attrs, value = call.attrs, value_of(self.bound(call.args[1]))
        shape, out = shape_of(call.args[0]), shape_of(call)
        layouts = {str(attrs.data_layout), str(attrs.out_layout)}
        plain = int(attrs.groups) == 1 and all(int(d) == 1 for d in attrs.dilation)
        if value is None or shape is None or out is None or layouts != {"NHWC"} or not plain:
            return call
        steps = int(attrs.strides[0]), int(attrs.strides[1])
        corner = int(attrs.padding[0]), int(attrs.padding[1])
        filters = _sorted(value.transpose([str(attrs.kernel_layout).index(x) for x in "HWIO"]), steps)
        taps = filters.shape[:2]
        # Pixels of the output that are read start at the corner; those of the convolution cover them.
        last = [-(-(o + c) // s) for o, c, s in zip(out[1:3], corner, steps, strict=True)]
        after = [max(0, q - extent) for q, extent in zip(last, shape[1:3], strict=True)]
        emit = self.builder_.emit
        image = emit(
            relax.op.nn.conv2d(
                call.args[0],
                relax.const(filters),
                padding=(taps[0] - 1, taps[1] - 1, *after),
                data_layout="NHWC",
                kernel_layout="HWIO",
                out_dtype=str(call.ty.dtype),
            )
        )
        rows, columns = (extent + more for extent, more in zip(shape[1:3], after, strict=True))
        apart = emit(relax.op.reshape(image, (out[0], rows, columns, *steps, out[3])))
        merged = emit(relax.op.permute_dims(apart, [0, 1, 3, 2, 4, 5]))
        whole = relax.op.reshape(merged, (out[0], rows * steps[0], columns * steps[1], out[3]))
        if (rows * steps[0], columns * steps[1]) == out[1:3]:
            return whole
        ends = [o + c for o, c in zip(out[1:3], corner, strict=True)]
        return relax.op.strided_slice(emit(whole), [1, 2], list(corner), ends)


def _sorted(filters: Array, steps: tuple[int, int]) -> Array:
    """Return HWIO filters as those of the convolution: every step-th tap, last to first, for each sort of pixel."""
    rows, columns, channels, number = filters.shape
    taps = [-(-extent // step) for extent, step in zip((rows, columns), steps, strict=True)]
    whole = np.zeros((taps[0] * steps[0], taps[1] * steps[1], channels, number), filters.dtype)
    whole[:rows, :columns] = filters
    sorts = whole.reshape(taps[0], steps[0], taps[1], steps[1], channels, number)[::-1, :, ::-1]
    ordered = sorts.transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(ordered.reshape(*taps, channels, steps[0] * steps[1] * number))
