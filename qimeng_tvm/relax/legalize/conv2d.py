"""Convolutions of NHWC pixels as the blocks that a rule reads.

Pixels get a border of zeros, and are gathered so that each row of the window reads a run of channels for each output
pixel; filters are sorted by group; the contraction has plain indices and whole tiles; a block behind it cuts the result
out. A rule drops those of the copies that it does not need. Rounded extents are :class:`ConvForm`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import relax, te, tirx

from qimeng_tvm.relax.legalize.depthwise import depthwise_conv2d, is_depthwise
from qimeng_tvm.relax.legalize.images import ACCUMULATE, stock
from qimeng_tvm.relax.rewriting import shape_of
from qimeng_tvm.schedule.contract import Window
from qimeng_tvm.schedule.conv_form import FILTERS, GATHER, PAD, ConvForm
from qimeng_tvm.schedule.convolution import WINDOW, told_window

#: Attribute that spares a function the analysis of how it fuses: elementwise operators may follow it, and no other
#: anchor may come before (``kOutEWiseFusable``).
FUSES = {"op_pattern": 4}
#: (image, row, column, channel) -> pixel; row and column may lie outside, where a pixel is zero.
Pixel = Callable[[Any, Any, Any, Any], Any]
#: (row, column, channel of a group, filter of all) -> weight.
Weight = Callable[[Any, Any, Any, Any], Any]


@dataclass(frozen=True)
class Operands:
    """What a convolution reads.

    Attributes
    ----------
    pixel : callable
        Of the input.
    in_place : bool
        No pixel lies outside, and output pixels read neighbours: no copy is needed.
    weight : callable
        Of the filters.
    acc_dtype, out_dtype : str
        Of the sums, and of the result.
    """

    pixel: Pixel
    in_place: bool
    weight: Weight
    acc_dtype: str
    out_dtype: str


def conv2d(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.nn.conv2d`` as a call of loops; TVM's own serve other layouts and unknown shapes."""
    if is_depthwise(call):
        return depthwise_conv2d(builder, call)
    (data, weight), attrs = call.args, call.attrs
    shape, kernel = shape_of(data), shape_of(weight)
    layouts = str(attrs.data_layout), str(attrs.out_layout)
    if shape is None or kernel is None or layouts != ("NHWC", "NHWC"):
        return stock(builder, call)
    return builder.call_te(
        te_conv2d,
        data,
        weight,
        layout=str(attrs.kernel_layout),
        strides=pair(attrs.strides),
        padding=tuple(int(x) for x in attrs.padding),
        dilation=pair(attrs.dilation),
        groups=int(attrs.groups),
        out_dtype=str(call.ty.dtype),
        primfunc_name_hint="conv2d",
        primfunc_attrs=FUSES,
    )


def pair(values: Any) -> tuple[int, int]:
    """Return an attribute of two numbers."""
    first, second = (int(x) for x in values)
    return first, second


def te_conv2d(
    data: te.Tensor,
    weight: te.Tensor,
    *,
    layout: str,
    strides: tuple[int, int],
    padding: tuple[int, ...],
    dilation: tuple[int, int],
    groups: int,
    out_dtype: str,
) -> te.Tensor:
    """Return the convolution; ``layout`` is that of the filters, ``padding`` is top, left, bottom, right."""
    batch, height, width, channels = (int(x) for x in data.shape)
    at = {axis: int(weight.shape[i]) for i, axis in enumerate(layout)}
    kernel = at["H"], at["W"]
    top, left, bottom, right = padding
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    out = (
        (height + top + bottom - reach[0] - 1) // strides[0] + 1,
        (width + left + right - reach[1] - 1) // strides[1] + 1,
    )
    window = Window(out, kernel, strides, dilation, groups)
    form = ConvForm(batch, window, channels // groups, at["O"] // groups, str(data.dtype))

    def pixel(n: Any, y: Any, x: Any, c: Any) -> Any:
        y, x = y - top, x - left
        inside = tirx.all(y >= 0, y < height, x >= 0, x < width)
        return te.if_then_else(inside, data[n, y, x, c], tirx.const(0, data.dtype))

    bare = not any(padding) and strides[1] == 1 and form.columns <= width and form.c == form.merged * form.channels
    read = (lambda n, y, x, c: data[n, y, x, c]) if bare else pixel
    operands = Operands(read, bare, reader_of(weight, layout), ACCUMULATE.get(str(data.dtype), out_dtype), out_dtype)
    return convolve(form, operands, str(data.dtype), str(weight.dtype))


def reader_of(weight: te.Tensor, layout: str) -> Weight:
    """Return how to read filters that are stored in that order."""
    return lambda r, s, i, o: weight(*({"H": r, "W": s, "I": i, "O": o}[axis] for axis in layout))


def convolve(form: ConvForm, read: Operands, a_dtype: str, b_dtype: str) -> te.Tensor:
    """Return the blocks of a convolution."""
    window, f_all = form.window, form.merged * form.filters
    (kr, ks), (sy, sx), (dy, dx) = window.kernel, window.stride, window.dilation
    c_all = form.merged * form.channels

    def bordered(n: Any, g: Any, y: Any, phase: Any, x: Any, c: Any) -> Any:
        value = read.pixel(n, y, x * sx + phase, g * c_all + c)
        return value if form.c == c_all else te.if_then_else(c < c_all, value, tirx.const(0, a_dtype))

    # Columns a stride apart lie side by side, so that a tile reads whole runs of them.
    planes = (form.batch, form.groups, form.rows, sx, form.columns, form.c)
    pixels = None if read.in_place else te.compute(planes, bordered, name=PAD)

    def gathered(n: Any, g: Any, y: Any, x: Any, s: Any, c: Any) -> Any:
        if pixels is None:
            return read.pixel(n, y, x + s * dx, g * c_all + c)
        return pixels[n, g, y, (s * dx) % sx, x + s * dx // sx, c]

    runs = te.compute((form.batch, form.groups, form.rows, form.x, ks, form.c), gathered, name=GATHER)

    def sorted_filters(r: Any, s: Any, g: Any, c: Any, f: Any) -> Any:
        value = read.weight(r, s, c % form.channels, g * f_all + f)
        own = []
        if form.merged > 1:
            own.append(tirx.floordiv(c, form.channels) == tirx.floordiv(f, form.filters))
        if form.c != c_all:
            own.append(c < c_all)
        if form.f != f_all:
            own.append(f < f_all)
        return te.if_then_else(tirx.all(*own), value, tirx.const(0, b_dtype)) if own else value

    filters = te.compute((kr, ks, form.groups, form.c, form.f), sorted_filters, name=FILTERS)
    r, s, c = (te.reduce_axis((0, extent), name) for extent, name in ((kr, "r"), (ks, "s"), (form.c, "c")))
    sums = te.compute(
        (form.batch, form.groups, window.out[0], form.x, form.f),
        lambda n, g, y, x, f: te.sum(
            runs[n, g, y * sy + r * dy, x, s, c].astype(read.acc_dtype) * filters[r, s, g, c, f].astype(read.acc_dtype),
            axis=[r, s, c],
        ),
        name="conv2d",
        attrs={WINDOW: told_window(window, form.channels, form.filters)},
    )

    def cut(n: Any, y: Any, x: Any, f: Any) -> Any:
        value = sums[n, 0, y, x, f] if form.groups == 1 else sums[n, f // f_all, y, x, f % f_all]
        return value.astype(read.out_dtype)

    return te.compute((form.batch, *window.out, window.groups * form.filters), cut, name="conv2d_cut")
