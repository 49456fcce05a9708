"""Depthwise convolutions as loops: each channel with a filter of its own, channels innermost everywhere."""

from __future__ import annotations

from tvm import relax, te, tirx
from tvm.ir import Expr

from qimeng_tvm.relax.legalize.images import ACCUMULATE, padded
from qimeng_tvm.relax.rewriting import shape_of


def is_depthwise(call: relax.Call) -> bool:
    """Tell whether :func:`depthwise_conv2d` serves a ``relax.nn.conv2d``: NHWC, HWIO, one filter a channel."""
    attrs = call.attrs
    data, kernel = shape_of(call.args[0]), shape_of(call.args[1])
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    if data is None or kernel is None or layouts != ("NHWC", "HWIO", "NHWC"):
        return False
    return int(attrs.groups) == data[3] == kernel[3] and kernel[2] == 1


def depthwise_conv2d(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return a ``relax.nn.conv2d`` with :func:`is_depthwise` as a call of loops: the border, then the products."""
    attrs, out_dtype = call.attrs, str(call.ty.dtype)
    out = shape_of(call)
    assert out is not None  # is_depthwise() has looked
    top, left = (int(p) for p in attrs.padding[:2])
    (sy, sx), (dy, dx) = (tuple(int(v) for v in pair) for pair in (attrs.strides, attrs.dilation))

    def convolution(data: te.Tensor, kernel: te.Tensor) -> te.Tensor:
        taps = (int(kernel.shape[0]), int(kernel.shape[1]))
        extents = ((out[1] - 1) * sy + (taps[0] - 1) * dy + 1, (out[2] - 1) * sx + (taps[1] - 1) * dx + 1)
        image = padded(data, (top, left), extents, tirx.const(0, data.dtype))
        r, q = te.reduce_axis((0, taps[0]), "r"), te.reduce_axis((0, taps[1]), "q")
        accumulate = ACCUMULATE.get(str(data.dtype), out_dtype)

        def output(n: Expr, y: Expr, x: Expr, c: Expr) -> Expr:
            value = image[n, y * sy + r * dy, x * sx + q * dx, c].astype(accumulate)
            return te.sum(value * kernel[r, q, 0, c].astype(accumulate), [r, q])

        sums = te.compute(out, output, name="depthwise")
        return sums if accumulate == out_dtype else te.compute(out, lambda *i: sums[i].astype(out_dtype), name="cast")

    return builder.call_te(convolution, call.args[0], call.args[1], primfunc_name_hint="depthwise_conv2d")
