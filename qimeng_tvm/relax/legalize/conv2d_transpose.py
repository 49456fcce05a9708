"""Transposed convolutions that :mod:`qimeng_tvm.relax.transposed` leaves: of an image with zeros between pixels."""

from __future__ import annotations

from typing import Any

from tvm import relax, te, tirx

from qimeng_tvm.relax.legalize.conv2d import FUSES, Operands, convolve, pair, reader_of
from qimeng_tvm.relax.legalize.images import ACCUMULATE, stock
from qimeng_tvm.relax.rewriting import shape_of
from qimeng_tvm.schedule.contract import Window
from qimeng_tvm.schedule.conv_form import ConvForm


def conv2d_transpose(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.nn.conv2d_transpose`` as a call of loops; TVM's own serve other layouts and unknown shapes."""
    attrs, out = call.attrs, shape_of(call)
    last = {str(attrs.data_layout), str(attrs.out_layout)} == {"NHWC"}
    if out is None or None in (shape_of(x) for x in call.args) or not last:
        return stock(builder, call)
    return builder.call_te(
        te_conv2d_transpose,
        *call.args,
        layout=str(attrs.kernel_layout),
        extents=out[1:3],
        strides=pair(attrs.strides),
        corner=pair(attrs.padding[:2]),
        dilation=pair(attrs.dilation),
        groups=int(attrs.groups),
        out_dtype=str(call.ty.dtype),
        primfunc_name_hint="conv2d_transpose",
        primfunc_attrs=FUSES,
    )


def te_conv2d_transpose(
    data: te.Tensor,
    weight: te.Tensor,
    *,
    layout: str,
    extents: tuple[int, int],
    strides: tuple[int, int],
    corner: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    out_dtype: str,
) -> te.Tensor:
    """Return the transposed convolution; ``corner`` is how much of its result is cut off above and on the left."""
    batch, height, width, channels = (int(x) for x in data.shape)
    at = {axis: int(weight.shape[i]) for i, axis in enumerate(layout)}
    kernel, of_group = (at["H"], at["W"]), channels // groups
    window = Window(extents, kernel, dilation=dilation, groups=groups)
    form = ConvForm(batch, window, of_group, at["O"], str(data.dtype))
    before = [(k - 1) * d - c for k, d, c in zip(kernel, dilation, corner, strict=True)]
    stored = reader_of(weight, layout)

    def pixel(n: Any, y: Any, x: Any, c: Any) -> Any:
        y, x = y - before[0], x - before[1]
        (row, column), (off_y, off_x) = ([f(v, s) for v, s in zip((y, x), strides, strict=True)] for f in _DIVISION)
        inside = tirx.all(off_y == 0, off_x == 0, row >= 0, row < height, column >= 0, column < width)
        return te.if_then_else(inside, data[n, row, column, c], tirx.const(0, data.dtype))

    def filters(r: Any, s: Any, i: Any, o: Any) -> Any:
        channel = tirx.floordiv(o, at["O"]) * of_group + i if groups > 1 else i
        return stored(kernel[0] - 1 - r, kernel[1] - 1 - s, channel, tirx.floormod(o, at["O"]) if groups > 1 else o)

    operands = Operands(pixel, False, filters, ACCUMULATE.get(str(data.dtype), out_dtype), out_dtype)
    return convolve(form, operands, str(data.dtype), str(weight.dtype))


_DIVISION = (tirx.floordiv, tirx.floormod)
