"""3x3 convolutions by Winograd's method, where the model of the machine finds it faster than summing over all taps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, te, tirx
from tvm.relax.expr_functor import mutator

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.relax.constants import Array, value_of
from qimeng_tvm.relax.legalize.conv2d import FUSES, pair, te_conv2d
from qimeng_tvm.relax.rewriting import Rewriter, shape_of
from qimeng_tvm.schedule import winograd_form as method
from qimeng_tvm.schedule.apply import make_task
from qimeng_tvm.schedule.winograd import WINOGRAD
from qimeng_tvm.schedule.winograd_form import A_T, B_T, TAPS, TILE, WinogradForm, told_form, transformed

#: Channels and filters that make the products worth their transforms, at least.
_DEPTH = 16
#: What share of the estimated time must be saved: the two estimates are not exact to that.
_SAVED = 0.1


def winograd(hardware: Hardware, threads: int) -> tvm.transform.Pass:
    """Return the pass that rewrites convolutions of stride 1 with constant 3x3 filters, in float32, NHWC.

    Parameters
    ----------
    hardware : Hardware
        The machine whose time is estimated.
    threads : int
        Cores that a function may use.
    """

    @tvm.transform.module_pass(opt_level=0, name="qimeng.Winograd")  # type: ignore[untyped-decorator]
    def run(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return _Winograd(mod, _Prices(hardware, threads)).transform()

    return run


class _Prices:
    """What the rules estimate for both ways, each shape asked for once."""

    def __init__(self, hardware: Hardware, threads: int) -> None:
        self.hardware, self.threads = hardware, threads
        self.known: dict[Any, bool] = {}

    def faster(self, form: WinogradForm, data: tuple[int, ...], padding: tuple[int, ...]) -> bool:
        """Tell whether Winograd's method is the faster one."""
        key = (form, data, padding)
        if key not in self.known:
            pixels = te.placeholder(data, "float32", "pixels")
            shape = (TAPS, TAPS, form.channels, form.filters)
            plain = te.placeholder(shape, "float32", "filters")
            points = te.placeholder((form.points, *shape[2:]), "float32", "filters")
            direct = te_conv2d(
                pixels, plain, layout="HWIO", strides=(1, 1), padding=padding, dilation=(1, 1), groups=1,
                out_dtype="float32",
            )  # fmt: skip
            ours = te_winograd(pixels, points, padding=padding)
            cost = self.cycles([pixels, points, ours])
            self.known[key] = cost < (1 - _SAVED) * self.cycles([pixels, plain, direct])
        return self.known[key]

    def cycles(self, tensors: list[te.Tensor]) -> float:
        """Return the estimate for a function with its default decisions; infinite where no rule serves it."""
        func = te.create_prim_func(tensors).with_attr("layout_free_buffers", [1])
        task = make_task(func, self.hardware, self.threads)
        if task is None:
            return float("inf")
        return task.rule.estimate(task.space.defaults(), task.info, self.hardware)


@mutator
class _Winograd(Rewriter):
    def __init__(self, mod: tvm.IRModule, prices: _Prices) -> None:
        super().__init__(mod)
        self.prices = prices

    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name != "relax.nn.conv2d":
            return call
        data, filters = shape_of(call.args[0]), value_of(self.bound(call.args[1]))
        if data is None or filters is None or not _is_plain(call, filters):
            return call
        attrs = call.attrs
        hwio = filters.transpose([str(attrs.kernel_layout).index(axis) for axis in "HWIO"])
        padding = tuple(int(p) for p in attrs.padding)
        _, rows, columns, _ = shape_of(call)  # type: ignore[misc]  # known where the input's is
        form = WinogradForm(data[0], rows, columns, *hwio.shape[2:])
        if min(hwio.shape[2:]) < _DEPTH or hwio.shape[3] % _DEPTH or not self.prices.faster(form, data, padding):
            return call
        return self.builder_.call_te(
            te_winograd,
            call.args[0],
            relax.const(transformed(hwio)),
            padding=padding,
            primfunc_name_hint="winograd",
            primfunc_attrs=FUSES,
        )


def _is_plain(call: relax.Call, filters: Array) -> bool:
    """Tell whether a convolution is one of 3x3 filters and stride 1, of float32 and NHWC."""
    attrs = call.attrs
    layouts = str(attrs.data_layout), str(attrs.out_layout)
    kernel = dict(zip(str(attrs.kernel_layout), filters.shape, strict=False))
    return (
        layouts == ("NHWC", "NHWC")
        and (kernel.get("H"), kernel.get("W")) == (TAPS, TAPS)
        and pair(attrs.strides) == pair(attrs.dilation) == (1, 1)
        and int(attrs.groups) == 1
        and {str(call.args[0].ty.dtype), str(filters.dtype), str(call.ty.dtype)} == {"float32"}
    )


def te_winograd(data: te.Tensor, filters: te.Tensor, *, padding: tuple[int, ...]) -> te.Tensor:
    """Return the convolution of pixels (N, H, W, C) with transformed filters (points, C, F).

    ``padding`` is top, left, bottom, right.
    """
    batch, height, width, channels = (int(x) for x in data.shape)
    top, left, bottom, right = padding
    rows, columns = height + top + bottom - TAPS + 1, width + left + right - TAPS + 1
    form = WinogradForm(batch, rows, columns, channels, int(filters.shape[2]))

    def bordered(n: Any, y: Any, x: Any, c: Any) -> Any:
        y, x = y - top, x - left
        inside = tirx.all(y >= 0, y < height, x >= 0, x < width)
        return te.if_then_else(inside, data[n, y, x, c], tirx.const(0, "float32"))

    pixels = te.compute((form.batch, *form.padded, form.channels), bordered, name=method.PAD)
    points = (form.points, form.batch, form.tile_rows, form.x)
    moved = te.compute(
        (*points, form.channels),
        lambda p, n, y, x, c: _chosen(p, B_T, lambda i, j: pixels[n, y * TILE + i, x * TILE + j, c]),
        name=method.PIXELS,
    )
    k = te.reduce_axis((0, form.channels), "k")
    products = te.compute(
        (*points, form.filters),
        lambda p, n, y, x, f: te.sum(moved[p, n, y, x, k] * filters[p, k, f], axis=k),
        name=method.PRODUCTS,
        attrs={WINOGRAD: told_form(form)},
    )
    size = len(B_T)

    def back(n: Any, y: Any, x: Any, f: Any) -> Any:
        def read(i: int, j: int) -> Any:
            return products[i * size + j, n, tirx.floordiv(y, TILE), tirx.floordiv(x, TILE), f]

        return _chosen(tirx.floormod(y, TILE) * TILE + tirx.floormod(x, TILE), A_T, read)

    tiles = te.compute((batch, form.tile_rows * TILE, form.x * TILE, form.filters), back, name=method.BACK)
    return te.compute((batch, rows, columns, form.filters), lambda n, y, x, f: tiles[n, y, x, f], name=method.OUT)


def _chosen(which: Any, matrix: method.Matrix, read: Callable[[int, int], Any]) -> Any:
    """Return element ``which`` of ``matrix @ tile @ matrix.T``, row by row.

    A schedule writes the loop over elements out, so that one of these expressions is left in each place.
    """
    rows = len(matrix)
    values = [_element(matrix[i], matrix[j], read) for i in range(rows) for j in range(rows)]
    result = values[-1]
    for at in range(len(values) - 2, -1, -1):
        result = tirx.Select(which == at, values[at], result)
    return result


def _element(row: Array, column: Array, read: Callable[[int, int], Any]) -> Any:
    """Return the sum over a tile of its elements, weighted by row and column; columns are summed first."""
    along = range(len(row))
    sums = {j: _weighted([(row[i], read(i, j)) for i in along if row[i]]) for j in along if column[j]}
    return _weighted([(column[j], value) for j, value in sums.items()])


def _weighted(terms: list[tuple[float, Any]]) -> Any:
    """Return a sum of weighted terms; weights of one cost nothing."""
    (first, total), *others = sorted(terms, key=lambda term: term[0] < 0)  # begins with one that is added
    total = _scaled(first, total) if first > 0 else -_scaled(first, total)
    for weight, term in others:
        total = total + _scaled(weight, term) if weight > 0 else total - _scaled(weight, term)
    return total


def _scaled(weight: float, term: Any) -> Any:
    return term if abs(weight) == 1 else term * tirx.const(abs(weight), "float32")
