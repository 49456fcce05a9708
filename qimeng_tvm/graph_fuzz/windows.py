"""Draws of operators over windows of images."""

from __future__ import annotations

from typing import Any

import numpy as np

from qimeng_tvm.graph_fuzz.builder import Builder, Unfit

_KERNELS = ((1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (5, 1), (2, 2))
#: Multiply-adds of one node.
_WORK = 1 << 24


def image(b: Builder) -> str:
    """Draw a value of four axes."""
    return b.pick(lambda shape: len(shape) == 4)


def _pads(b: Builder, kernel: tuple[int, int], dilations: tuple[int, int]) -> list[int]:
    """Draw none, what keeps the extents, or less than the kernel on any side."""
    span = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    how = b.choice(("none", "same", "same", "any"))
    if how == "none":
        return [0, 0, 0, 0]
    if how == "same":
        return [span[0] // 2, span[1] // 2, span[0] - span[0] // 2, span[1] - span[1] // 2]
    return [int(b.rng.integers(0, s + 1)) for s in (*span, *span)]


def _fitting(shape: tuple[int, ...], kernel: tuple[int, int], dilations: tuple[int, int], pads: list[int]) -> None:
    for axis in range(2):
        if shape[2 + axis] + pads[axis] + pads[2 + axis] <= (kernel[axis] - 1) * dilations[axis]:
            raise Unfit("the window is larger than the image")


def _groups(b: Builder, channels: int) -> int:
    """Draw a divisor of the channels, mostly one or all."""
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    return int(b.choice((1, 1, 1, channels, b.choice(divisors))))


def conv(b: Builder, x: str | None = None, out: int | None = None, **fixed: Any) -> str:
    """Add a convolution of any kind; or one of given output channels that keeps the image's extents."""
    x = image(b) if x is None else x
    shape = b.shape(x)
    kernel = b.choice(_KERNELS) if "kernel" not in fixed else fixed["kernel"]
    groups = _groups(b, shape[1]) if out is None else 1
    each = b.choice((1, 1, 2, 3)) if groups == shape[1] else max(1, b.extent(48) // groups)
    channels = groups * each if out is None else out
    plain = out is not None or b.chance(0.5)
    dilations = (1, 1) if plain else b.choice(((1, 1), (2, 2), (1, 3)))
    strides = (1, 1) if plain else b.choice(((1, 1), (2, 2), (3, 1), (2, 1)))
    pads = _pads(b, kernel, dilations)
    if out is not None:
        pads = [(kernel[0] - 1) // 2, (kernel[1] - 1) // 2, kernel[0] // 2, kernel[1] // 2]
    _fitting(shape, kernel, dilations, pads)
    depth = shape[1] // groups * kernel[0] * kernel[1]
    if depth * channels * shape[0] * shape[2] * shape[3] > _WORK:
        raise Unfit("too much work")
    operands = [x, b.weight((channels, shape[1] // groups, *kernel), depth)]
    if b.chance(0.5):
        operands.append(b.weight((channels,)))
    return b.add(
        "Conv", operands, kernel_shape=list(kernel), strides=list(strides), dilations=list(dilations), pads=pads,
        group=groups,
    )  # fmt: skip


def conv_transpose(b: Builder) -> str:
    """Add a transposed convolution."""
    x = b.pick(lambda shape: len(shape) == 4 and max(shape[2:]) <= 17)
    shape = b.shape(x)
    kernel = b.choice(((1, 1), (2, 2), (3, 3), (4, 4), (3, 1)))
    strides = b.choice(((1, 1), (2, 2), (2, 2), (1, 2)))
    groups = b.choice([g for g in (1, 1, 2, 3) if shape[1] % g == 0])
    each = b.extent(17)
    pads = [int(b.rng.integers(0, k)) for k in (*kernel, *kernel)]
    more = [int(b.rng.integers(0, s)) if b.chance(0.3) else 0 for s in strides]
    for axis in range(2):
        if (shape[2 + axis] - 1) * strides[axis] + kernel[axis] + more[axis] <= pads[axis] + pads[2 + axis]:
            raise Unfit("nothing is left")
    depth = shape[1] // groups * kernel[0] * kernel[1]
    if depth * each * groups * shape[0] * shape[2] * shape[3] > _WORK:
        raise Unfit("too much work")
    operands = [x, b.weight((shape[1], each, *kernel), depth)]
    if b.chance(0.5):
        operands.append(b.weight((each * groups,)))
    return b.add(
        "ConvTranspose", operands, kernel_shape=list(kernel), strides=list(strides), pads=pads, group=groups,
        output_padding=more,
    )  # fmt: skip


def pool(b: Builder) -> str:
    """Add a pooling over windows or over all of the image."""
    x = image(b)
    if b.chance(0.25):
        return b.add("GlobalAveragePool", [x])
    op = b.choice(("MaxPool", "AveragePool"))
    kernel = b.choice(((2, 2), (3, 3), (1, 2), (5, 5)))
    strides = b.choice(((1, 1), (2, 2), (2, 1), (3, 3)))
    dilations = b.choice(((1, 1), (1, 1), (2, 2))) if op == "MaxPool" else (1, 1)
    # A window of nothing but padding has no largest element.
    pads = [int(b.rng.integers(0, (k + 1) // 2)) for k in (*kernel, *kernel)] if b.chance(0.6) else [0, 0, 0, 0]
    _fitting(b.shape(x), kernel, dilations, pads)
    extra: dict[str, Any] = {"dilations": list(dilations)} if op == "MaxPool" else {}
    if op == "AveragePool" and b.chance(0.5):
        extra["count_include_pad"] = 1
    return b.add(op, [x], kernel_shape=list(kernel), strides=list(strides), pads=pads, **extra)


def batch_norm(b: Builder, x: str | None = None) -> str:
    """Add a batch normalization."""
    x = b.pick(lambda shape: len(shape) in (3, 4)) if x is None else x
    channels = (b.shape(x)[1],)
    operands = [b.positive(channels), b.weight(channels), b.weight(channels), b.positive(channels)]
    return b.add("BatchNormalization", [x, *operands], epsilon=1e-5)


def resize(b: Builder) -> str:
    """Add an enlargement of an image to twice its size, by the nearest element."""
    x = b.pick(lambda shape: len(shape) == 4 and max(shape[2:]) <= 17)
    how = b.choice((("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")))
    scales = b.constant(np.asarray([1, 1, *b.choice(((2, 2), (2, 2), (1, 2), (3, 2)))], np.float32))
    return b.add("Resize", [x, "", scales], mode="nearest", coordinate_transformation_mode=how[0], nearest_mode=how[1])
