"""Operators over windows of images that rules are checked on: convolutions, depthwise ones, poolings."""

from __future__ import annotations

from typing import Any

from qimeng_tvm.generate.graphs import Given, Graph, Step, by
from qimeng_tvm.schedule.winograd_form import B_T, TAPS

Pair = tuple[int, int]
Image = tuple[int, int, int, int]
#: Types of an image, filters, and what a convolution of them gives.
_CONV_TYPES = {
    "f32": ("float32", "float32", "float32"),
    "bf16": ("bfloat16", "bfloat16", "bfloat16"),
    "s8": ("int8", "int8", "int32"),
}


def conv(
    image: Image,
    filters: int,
    kernel: Pair = (3, 3),
    stride: Pair = (1, 1),
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    *,
    dilation: Pair = (1, 1),
    groups: int = 1,
    dtypes: str = "f32",
    then: str = "",
    constant: bool = True,
    threads: int = 1,
) -> Graph:
    """Return a convolution of NHWC pixels with HWIO filters; ``then`` names its epilogue: bias, residual, relu..."""
    pixels, weights, out = _CONV_TYPES[dtypes]
    extents = [
        (image[1 + i] + padding[i] + padding[2 + i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1
        for i in (0, 1)
    ]
    attributes = (
        ("strides", stride), ("padding", padding), ("dilation", dilation), ("groups", groups), ("out_dtype", out),
    )  # fmt: skip
    kernel_of = Given("kernel", (*kernel, image[3] // groups, filters), weights, constant)
    title = f"conv2d {by(image)} {by(kernel)} to {filters} {dtypes} pad {by(padding)}"
    title += f" stride {by(stride)}" if stride != (1, 1) else ""
    title += f" dilation {by(dilation)}" if dilation != (1, 1) else ""
    title += f" groups {groups}" if groups > 1 else ""
    title += " constant filters" if constant else ""
    first = Step("conv2d", ("image", "kernel"), attributes)
    result = Given("residual", (image[0], extents[0], extents[1], filters), out)
    return _followed(title, first, Given("image", image, pixels), kernel_of, result, then, threads)


def _followed(title: str, first: Step, image: Given, kernel: Given, result: Given, then: str, threads: int) -> Graph:
    """Return a convolution with its epilogue; ``result`` is what a residual is like."""
    steps, others = [first], []
    for name in then.split():
        if name == "bias":
            others.append(Given("bias", result.shape[-1:], result.dtype, kernel.constant))
        elif name == "residual":
            others.append(result)
        steps.append(Step("add", ("", name)) if name in ("bias", "residual") else _clip(name))
    fed = [image, *(g for g in others if not g.constant)]
    known = [kernel, *(g for g in others if g.constant)]
    ordered = (*fed, *known) if kernel.constant else (fed[0], kernel, *fed[1:])
    return Graph(title, ordered, tuple(steps), threads)


def _clip(name: str) -> Step:
    return Step("clip", attributes=(("min", 0), ("max", 6))) if name == "relu6" else Step(name)


def convs() -> tuple[Graph, ...]:
    """Borders, rows that no tile divides, strides, dilation, groups wide and narrow, few channels, epilogues."""
    none, two, three = (0, 0, 0, 0), (2, 2, 2, 2), (3, 3, 3, 3)
    return (
        conv((1, 14, 14, 32), 64, then="bias relu"),
        conv((1, 12, 12, 16), 16, padding=none),
        conv((2, 9, 13, 5), 7, (3, 5), (2, 1), (0, 1, 2, 3), then="bias"),
        conv((1, 17, 17, 8), 24, padding=two, dilation=(2, 2)),
        conv((1, 30, 30, 3), 64, (7, 7), (2, 2), three, then="bias relu"),
        conv((1, 1, 50, 1), 16, (1, 9), padding=none),
        conv((2, 14, 14, 32), 64, groups=2, threads=2),
        conv((1, 14, 14, 64), 64, groups=16),
        conv((1, 14, 14, 32), 64, then="bias residual relu"),
        conv((2, 14, 14, 32), 64, constant=False, threads=2),
        conv((2, 28, 27, 24), 40, threads=2, then="bias relu6"),
        conv((1, 14, 14, 32), 64, dtypes="bf16", then="bias"),
        conv((1, 15, 15, 3), 16, (3, 3), (2, 2), dtypes="bf16"),
        conv((1, 14, 14, 32), 64, dtypes="s8"),
        conv((1, 14, 14, 30), 20, dtypes="s8", threads=2),
    )


def timed_convs() -> tuple[Graph, ...]:
    """Layers of residual networks, the first one and a grouped one."""
    return (
        conv((1, 56, 56, 64), 64, then="bias relu"),
        conv((1, 28, 28, 128), 128, then="bias relu"),
        conv((1, 7, 7, 512), 512, then="bias relu"),
        conv((1, 224, 224, 3), 64, (7, 7), (2, 2), (3, 3, 3, 3), then="bias relu"),
        conv((1, 28, 28, 256), 256, (3, 3), (2, 2)),
        conv((1, 56, 56, 128), 128, groups=32, stride=(2, 2), then="bias relu"),
        conv((1, 28, 28, 128), 128, dtypes="bf16", threads=2, then="bias relu"),
    )


def winograd(
    image: Image,
    filters: int,
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    *,
    then: str = "",
    constant: bool = True,
    threads: int = 1,
) -> Graph:
    """Return a 3x3 convolution by Winograd's method, of filters that are transformed already; ``then`` as above."""
    extents = [image[1 + i] + padding[i] + padding[2 + i] - TAPS + 1 for i in (0, 1)]
    kernel = Given("kernel", (len(B_T) ** 2, image[3], filters), constant=constant)
    title = f"winograd {by(image)} 3x3 to {filters} f32 pad {by(padding)}" + (" constant filters" if constant else "")
    first = Step("winograd", ("image", "kernel"), (("padding", padding),))
    result = Given("residual", (image[0], extents[0], extents[1], filters))
    return _followed(title, first, Given("image", image), kernel, result, then, threads)


def winograds() -> tuple[Graph, ...]:
    """Whole and odd tiles, a single one, borders of uneven sides and none, batches, odd channels, epilogues."""
    none = (0, 0, 0, 0)
    return (
        winograd((1, 14, 14, 32), 64, then="bias relu"),
        winograd((2, 7, 9, 16), 48, then="bias"),
        winograd((1, 12, 36, 24), 16, none),
        winograd((1, 5, 33, 17), 64, (2, 0, 1, 3), then="residual"),
        winograd((1, 3, 3, 16), 16, none),
        winograd((1, 8, 8, 32), 96),
        winograd((1, 13, 14, 32), 64, then="bias residual relu", threads=2),
        winograd((2, 28, 27, 24), 80, then="bias relu6", threads=2),
        winograd((3, 9, 6, 64), 32, none, threads=2),
        winograd((1, 20, 20, 48), 128, then="relu", threads=2),
        winograd((1, 11, 10, 16), 32, constant=False),
        winograd((2, 6, 16, 32), 64, constant=False, then="bias", threads=2),
    )


def timed_winograds() -> tuple[Graph, ...]:
    """Layers of residual networks."""
    return (
        winograd((1, 28, 28, 128), 128, then="bias relu"),
        winograd((1, 56, 56, 64), 64, then="bias relu"),
        winograd((1, 14, 14, 256), 256, then="bias relu", threads=2),
    )


def depthwise(image: Image, kernel: Pair = (3, 3), stride: Pair = (1, 1), **more: Any) -> Graph:
    """Return a depthwise convolution, by default with a border that keeps the image's extents."""
    pad = more.pop("padding", (kernel[0] // 2, kernel[1] // 2, kernel[0] // 2, kernel[1] // 2))
    return conv(image, image[3], kernel, stride, pad, groups=image[3], **more)


def depthwise_convs() -> tuple[Graph, ...]:
    """Channels that no vector divides, borders of uneven sides, strides, dilation, other types, epilogues."""
    return (
        depthwise((1, 14, 14, 32), then="bias relu6"),
        depthwise((2, 9, 11, 16), stride=(2, 2), threads=2),
        depthwise((1, 13, 10, 24), stride=(2, 1), padding=(0, 1, 2, 1)),
        depthwise((1, 7, 7, 10)),
        depthwise((1, 12, 12, 20), (5, 5), then="bias"),
        depthwise((1, 15, 17, 16), dilation=(2, 2), padding=(2, 2, 2, 2)),
        depthwise((1, 10, 9, 32), padding=(0, 0, 0, 0), then="residual"),
        depthwise((1, 21, 12, 64), then="bias relu6", threads=2),
        depthwise((1, 9, 8, 32), dtypes="bf16"),
        depthwise((1, 9, 8, 32), dtypes="s8"),
    )


def timed_depthwise() -> tuple[Graph, ...]:
    """Layers of mobile networks."""
    return (
        depthwise((1, 112, 112, 32), then="bias relu6"),
        depthwise((1, 112, 112, 96), stride=(2, 2), then="bias relu6"),
        depthwise((1, 28, 28, 192), then="bias relu6"),
        depthwise((1, 7, 7, 960), then="bias relu6"),
        depthwise((1, 56, 56, 144), then="bias relu6", threads=2),
    )


def pool(
    op: str,
    image: Image,
    size: Pair = (3, 3),
    stride: Pair = (2, 2),
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    *,
    dtype: str = "float32",
    then: str = "",
    threads: int = 1,
    **more: Any,
) -> Graph:
    """Return a pooling of NHWC pixels."""
    attributes = (("size", size), ("strides", stride), ("padding", padding), *more.items())
    steps = (Step(op, ("image",), attributes), *map(Step, then.split()))
    title = f"{op} {by(image)} {dtype} {by(size)} stride {by(stride)} pad {by(padding)}"
    return Graph(title, (Given("image", image, dtype),), steps, threads)


def pools() -> tuple[Graph, ...]:
    """Maxima and means, borders of uneven sides, channels that no vector divides, other types."""
    none = (0, 0, 0, 0)
    return (
        pool("max_pool", (1, 16, 16, 32)),
        pool("max_pool", (2, 9, 11, 24), then="relu", threads=2),
        pool("max_pool", (1, 13, 10, 10), padding=(0, 1, 1, 0)),
        pool("max_pool", (1, 12, 12, 3), (2, 3), (1, 2), none),
        pool("max_pool", (1, 9, 9, 16), (5, 5), (1, 1), (2, 2, 2, 2)),
        pool("max_pool", (1, 10, 9, 32), dtype="bfloat16"),
        pool("max_pool", (1, 10, 9, 32), dtype="int8"),
        pool("avg_pool", (1, 16, 15, 24), border_counts=True, then="relu"),
        pool("avg_pool", (2, 13, 10, 16), border_counts=False, threads=2),
        pool("avg_pool", (1, 12, 12, 32), (3, 3), (2, 2), none, dtype="bfloat16"),
    )


def timed_pools() -> tuple[Graph, ...]:
    """Poolings of convolutional networks."""
    none = (0, 0, 0, 0)
    return (
        pool("max_pool", (1, 112, 112, 64)),
        pool("max_pool", (1, 112, 112, 64), threads=2),
        pool("avg_pool", (1, 56, 56, 128), (2, 2), (2, 2), none),
        pool("max_pool", (1, 35, 35, 288), (3, 3), (1, 1)),
    )
