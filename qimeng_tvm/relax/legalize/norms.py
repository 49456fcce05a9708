"""Instance and group norms as loops over rows: one of these is a channel, or a group of channels, of an image.

The variance is that of what is left of the mean, not a difference of squares, which loses all its digits where the
mean is large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import relax, te, tirx
from tvm.ir import Expr

from qimeng_tvm.relax.legalize.images import stock
from qimeng_tvm.relax.rewriting import shape_of

_DTYPE = "float32"

#: From the axes of a tensor of rows to its element.
Element = Callable[..., Expr]


@dataclass(frozen=True)
class Norm:
    """What a norm works along.

    Attributes
    ----------
    shape : tuple of int
        Of the tensor.
    channels : int
        Axis of the channels: 1, or the last one.
    size : int
        Channels of a group.
    epsilon : float
        Added to the variance.
    """

    shape: tuple[int, ...]
    channels: int
    size: int
    epsilon: float

    @property
    def inner(self) -> tuple[int, ...]:
        """Extents of the pixels."""
        return tuple(x for n, x in enumerate(self.shape) if n not in (0, self.channels))

    @property
    def count(self) -> int:
        """Elements that have a mean in common."""
        return self.size * math.prod(self.inner)

    def at(self, image: Expr, channel: Expr, pixel: Sequence[Expr]) -> tuple[Expr, ...]:
        """Return the place of an element."""
        place = [image, *pixel]
        place.insert(self.channels, channel)
        return tuple(place)


def instance_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.nn.instance_norm`` as a call of loops."""
    # PyTorch's has all channels of all images in one image, whose axis it then names too.
    own = [int(a) for a in call.attrs.axes]
    shape = shape_of(call.args[0])
    single = shape is not None and shape[0] == 1 and 0 in own
    norm = _norm_of(call, own[1:] if single else own, 1)
    return stock(builder, call) if norm is None else _normalize(builder, call, norm, "instance_norm")


def group_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.nn.group_norm`` as a call of loops."""
    shape, groups = shape_of(call.args[0]), int(call.attrs.num_groups)
    size = shape[int(call.attrs.channel_axis) % len(shape)] // groups if shape else 1
    norm = _norm_of(call, [int(a) for a in call.attrs.axes], size)
    return stock(builder, call) if norm is None else _normalize(builder, call, norm, "group_norm")


def _norm_of(call: relax.Call, axes: Sequence[int], size: int) -> Norm | None:
    """Read a norm's attributes; None when our loops do not serve it."""
    shape = shape_of(call.args[0])
    if shape is None or 0 in shape or len(shape) < 2 or str(call.ty.dtype) != _DTYPE:
        return None
    rank = len(shape)
    channels = int(call.attrs.channel_axis) % rank
    pixels = [n for n in range(1, rank) if n != channels]
    if channels not in (1, rank - 1) or sorted(a % rank for a in axes) != pixels or (size == 1 and not pixels):
        return None
    return Norm(shape, channels, size, float(call.attrs.epsilon))


def _normalize(builder: relax.BlockBuilder, call: relax.Call, norm: Norm, name: str) -> relax.Expr:
    inside = norm.channels > 1
    loops = _of_channels if inside or norm.size == 1 else _of_groups
    return builder.call_te(lambda *x: loops(norm, name, *x), *call.args, primfunc_name_hint=name)


def _of_groups(norm: Norm, name: str, x: te.Tensor, gamma: te.Tensor, beta: te.Tensor) -> te.Tensor:
    """Rows are groups of channels, stored in one piece."""
    rows = (norm.shape[0], norm.shape[1] // norm.size)

    def total(value: Element, step: str) -> te.Tensor:
        k = [te.reduce_axis((0, extent)) for extent in (norm.size, *norm.inner)]
        return te.compute(rows, lambda n, g: te.sum(value(n, g, g * norm.size + k[0], *k[1:]), axis=k), name=step)

    def left(n: Expr, g: Expr, c: Expr, *pixel: Expr) -> Expr:
        return x(n, c, *pixel) - mean[n, g]

    added = total(lambda n, g, *i: x(n, *i), "norm_sum")
    mean = te.compute(rows, lambda *i: _share(added[i], norm), name="norm_mean")
    squares = total(lambda *i: left(*i) * left(*i), "norm_squares")
    scale = te.compute(rows, lambda *i: _scale(squares[i], norm), name="norm_scale")

    def output(n: Expr, c: Expr, *pixel: Expr) -> Expr:
        g = tirx.floordiv(c, norm.size)
        return left(n, g, c, *pixel) * (scale[n, g] * gamma[c]) + beta[c]

    return te.compute(norm.shape, output, name=name)


def _of_channels(norm: Norm, name: str, x: te.Tensor, gamma: te.Tensor, beta: te.Tensor) -> te.Tensor:
    """Rows are channels. Each of a group has what the group has: vectors of channels then need nothing else."""
    rows, rank = (norm.shape[0], norm.shape[norm.channels]), len(norm.shape)

    def total(value: Element, step: str) -> te.Tensor:
        k = [te.reduce_axis((0, extent)) for extent in norm.inner]
        own = te.compute(rows, lambda n, c: te.sum(value(n, c, *k), axis=k), name=step)
        if norm.size == 1:
            return own
        j = te.reduce_axis((0, norm.size))

        def together(n: Expr, c: Expr) -> Expr:
            return te.sum(own[n, tirx.floordiv(c, norm.size) * norm.size + j], axis=j)

        return te.compute(rows, together, name=f"{step}_group")

    def left(n: Expr, c: Expr, *pixel: Expr) -> Expr:
        return x[norm.at(n, c, pixel)] - mean[n, c]

    added = total(lambda n, c, *p: x[norm.at(n, c, p)], "norm_sum")
    mean = te.compute(rows, lambda *i: _share(added[i], norm), name="norm_mean")
    squares = total(lambda *i: left(*i) * left(*i), "norm_squares")
    scale = te.compute(rows, lambda n, c: gamma[c] * _scale(squares[n, c], norm), name="norm_scale")

    def output(*i: Expr) -> Expr:
        n, c = i[0], i[norm.channels]
        pixel = [i[a] for a in range(1, rank) if a != norm.channels]
        return left(n, c, *pixel) * scale[n, c] + beta[c]

    return te.compute(norm.shape, output, name=name)


def _share(total: Expr, norm: Norm) -> Expr:
    return total / tirx.const(norm.count, _DTYPE)


def _scale(squares: Expr, norm: Norm) -> Expr:
    return tirx.rsqrt(_share(squares, norm) + tirx.const(norm.epsilon, _DTYPE))
