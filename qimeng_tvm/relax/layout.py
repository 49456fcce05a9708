"""Images with their channels innermost, where vectors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.constants import fold_arrangements
from qimeng_tvm.relax.rewriting import Rewriter, rewriting_pass, shape_of


def channels_last() -> list[tvm.transform.Pass]:
    """Return the passes that bring convolutions, and all that passes pixels on between them, to NHWC.

    Filters stay as they are stored: packing reads any order, and a copy would hide that they are constant. Those of
    depthwise convolutions become HWIO.
    """
    return [
        rewriting_pass("qimeng.Conv1dAsConv2d", _Conv1dAsConv2d),
        relax.transform.DeadCodeElimination(),
        relax.transform.ConvertLayout({}, _wanted),
        relax.transform.CanonicalizeBindings(),
        fold_arrangements(),
        relax.transform.DeadCodeElimination(),
    ]


def _wanted(call: relax.Call) -> Mapping[str, Sequence[str]]:
    """Return the layouts of pixels and filters that a call should have."""
    name = str(call.op.name)
    if name not in ("relax.nn.conv2d", "relax.nn.conv2d_transpose"):
        return {}
    kernel = str(call.attrs.kernel_layout)
    filters = shape_of(call.args[1])
    depthwise = filters is not None and int(call.attrs.groups) > 1 and filters[kernel.index("I")] == 1
    return {name: ["NHWC", "HWIO" if depthwise and name == "relax.nn.conv2d" else kernel]}


@mutator
class _Conv1dAsConv2d(Rewriter):
    """A convolution along a line is one of images of one row."""

    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name != "relax.nn.conv1d":
            return call
        (data, weight), attrs = call.args, call.attrs
        layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout)
        shapes = shape_of(data), shape_of(weight), shape_of(call)
        if any(shape is None for shape in shapes):
            return call
        rows = [layout.index("W") for layout in layouts]
        begin, end = (int(p) for p in attrs.padding)
        images = [
            self.builder_.normalize(relax.op.reshape(x, _inserted(shape, row)))
            for x, shape, row in zip((data, weight), shapes, rows, strict=False)
        ]
        image = relax.op.nn.conv2d(
            *images,
            strides=(1, int(attrs.strides[0])),
            padding=(0, begin, 0, end),
            dilation=(1, int(attrs.dilation[0])),
            groups=int(attrs.groups),
            data_layout=layouts[0].replace("W", "HW"),
            kernel_layout=layouts[1].replace("W", "HW"),
            out_layout=layouts[2].replace("W", "HW"),
            out_dtype=str(call.ty.dtype),
        )
        return relax.op.reshape(self.builder_.normalize(image), shapes[2])


def _inserted(shape: tuple[int, ...] | None, at: int) -> tuple[int, ...]:
    """Return a shape with an axis of one more."""
    assert shape is not None  # the caller has looked
    return (*shape[:at], 1, *shape[at:])
