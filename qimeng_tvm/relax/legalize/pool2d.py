"""Poolings of images with channels innermost as loops; other layouts are left to TVM's own definitions."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax, te, tirx
from tvm.ir import Expr

from qimeng_tvm.relax.legalize.images import ACCUMULATE, padded, stock
from qimeng_tvm.relax.rewriting import shape_of

_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Pool:
    """A pooling's windows; pairs are (rows, columns).

    Attributes
    ----------
    out, kernel, stride, dilation : tuple of int
        As in :class:`qimeng_tvm.schedule.contract.Window`.
    before, after : tuple of int
        Border that belongs to the image: above and on the left, below and on the right.
    """

    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def extents(self) -> tuple[int, int]:
        """Rows and columns that the windows read."""
        rows, columns = (
            (o - 1) * s + (k - 1) * d + 1
            for o, s, k, d in zip(self.out, self.stride, self.kernel, self.dilation, strict=True)
        )
        return rows, columns


def max_pool2d(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.nn.max_pool2d`` as a call of loops."""
    pool = _pool_of(call)
    if pool is None:
        return stock(builder, call)

    def maximum(data: te.Tensor) -> te.Tensor:
        image = padded(data, pool.before, pool.extents, tirx.min_value(data.dtype))
        return _windows(image, pool, te.max, str(data.dtype))

    return builder.call_te(maximum, call.args[0], primfunc_name_hint="max_pool2d")


def avg_pool2d(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.nn.avg_pool2d`` as a call of loops."""
    pool = _pool_of(call)
    if pool is None or str(call.ty.dtype) not in _FLOATS:
        return stock(builder, call)
    return _average(builder, call, pool, bool(call.attrs.count_include_pad))


def adaptive_avg_pool2d(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.nn.adaptive_avg_pool2d`` as a call of loops, where its windows are all of one size."""
    data, out = shape_of(call.args[0]), shape_of(call)
    layouts = (str(call.attrs.layout), str(call.attrs.out_layout))
    if data is None or out is None or layouts != ("NHWC", "NHWC") or str(call.ty.dtype) not in _FLOATS:
        return stock(builder, call)
    if data[1] % out[1] or data[2] % out[2]:
        return stock(builder, call)
    size = (data[1] // out[1], data[2] // out[2])
    return _average(builder, call, Pool((out[1], out[2]), size, size, (1, 1), (0, 0), (0, 0)), True)


def _average(builder: relax.BlockBuilder, call: relax.Call, pool: Pool, border_counts: bool) -> relax.Expr:
    dtype = str(call.ty.dtype)
    accumulate = ACCUMULATE.get(dtype, dtype)

    def average(data: te.Tensor) -> te.Tensor:
        image = padded(data, pool.before, pool.extents, tirx.const(0, dtype))
        sums = _windows(image, pool, te.sum, accumulate)
        before, after = (pool.before, pool.after) if border_counts else ((0, 0), (0, 0))
        rows, columns = int(data.shape[1]), int(data.shape[2])

        def share(n: Expr, y: Expr, x: Expr, c: Expr) -> Expr:
            count = _counted(pool, 0, y, -before[0], rows + after[0])
            count = count * _counted(pool, 1, x, -before[1], columns + after[1])
            # One division a pixel; a count that is the same everywhere is folded.
            weight = tirx.const(1, accumulate) / tirx.max(count, 1).astype(accumulate)
            return (sums[n, y, x, c] * weight).astype(dtype)

        return te.compute(sums.shape, share, name="average")

    return builder.call_te(average, call.args[0], primfunc_name_hint="avg_pool2d")


def _windows(image: te.Tensor, pool: Pool, reducer: tirx.CommReducer, accumulate: str) -> te.Tensor:
    """Reduce each window of an image that has its border."""
    r, q = te.reduce_axis((0, pool.kernel[0]), "r"), te.reduce_axis((0, pool.kernel[1]), "q")
    (sy, sx), (dy, dx) = pool.stride, pool.dilation
    shape = (image.shape[0], *pool.out, image.shape[3])

    def window(n: Expr, y: Expr, x: Expr, c: Expr) -> Expr:
        return reducer(image[n, y * sy + r * dy, x * sx + q * dx, c].astype(accumulate), axis=[r, q])

    return te.compute(shape, window, name="pool")


def _counted(pool: Pool, axis: int, at: Expr, low: int, high: int) -> Expr | int:
    """How many of a window's rows (columns) count: those from ``low`` on and below ``high``."""
    stride, dilation, kernel, before = pool.stride[axis], pool.dilation[axis], pool.kernel[axis], pool.before[axis]
    last = (pool.out[axis] - 1) * stride - before + (kernel - 1) * dilation
    if -before >= low and last < high:
        return kernel
    start = at * stride - before
    first = tirx.max((low - start + dilation - 1) // dilation, 0)
    behind = tirx.min((high - start + dilation - 1) // dilation, kernel)
    return tirx.max(behind - first, 0)


def _pool_of(call: relax.Call) -> Pool | None:
    """Read a pooling's attributes; None when our loops do not serve it."""
    attrs = call.attrs
    data, out = shape_of(call.args[0]), shape_of(call)
    if data is None or out is None or (str(attrs.layout), str(attrs.out_layout)) != ("NHWC", "NHWC"):
        return None
    kernel, stride, dilation = (
        (int(pair[0]), int(pair[1])) for pair in (attrs.pool_size, attrs.strides, attrs.dilation)
    )
    top, left, bottom, right = (int(p) for p in attrs.padding)
    return Pool((out[1], out[2]), kernel, stride, dilation, (top, left), (bottom, right))
