"""Functions of a number of rows that is not known: loops over tiles of known ones, which rules serve.

Where each row comes of the same row of the inputs alone, rows may be computed in any order, and twice: the last tile
begins so early that it ends with the last row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx
from tvm.ir import Range
from tvm.s_tir import MatchBufferRegion, SBlock, SBlockRealize
from tvm_ffi import structural_walk

from qimeng_tvm.schedule.analysis import root_blocks
from qimeng_tvm.schedule.slices import renamed_root, statements_of, touched

#: Rows of a tile: as many of the first as there are, the rest by the second; fewer rows than that by the last.
_TILES = (64, 8, 1)
#: Elements of a tile's largest tensor that are enough: where rows are that long, tiles of fewer rows do.
_ENOUGH = 1 << 16

_TRUE = tirx.const(True, "bool")

#: From a function of known shapes to its schedule.
Serve = Callable[[tirx.PrimFunc], tirx.PrimFunc]


@dataclass(frozen=True)
class Rows:
    """How a function's rows are counted.

    Attributes
    ----------
    count : Var
        Their number.
    axes : mapping of int to int
        By the place of a parameter, the axis that counts them; parameters without one are left out.
    """

    count: tirx.Var
    axes: Mapping[int, int]


def independent_rows(func: tirx.PrimFunc) -> Rows | None:
    """Return how the rows of a function are counted; None when it is not one of a number of independent rows.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        As fused, before any schedule.
    """
    shapes = [list(getattr(p, "shape", ())) for p in func.params]
    unknown = [x for shape in shapes for x in shape if not isinstance(x, tirx.IntImm)]
    if not unknown or not isinstance(unknown[0], tirx.Var) or any(not x.same_as(unknown[0]) for x in unknown):
        return None
    count = unknown[0]
    axes = {n: _row_axis(shape, count) for n, shape in enumerate(shapes)}
    if -1 in axes.values():
        return None
    sch = s_tir.Schedule(func)
    if not all(_is_independent(sch, block, count) for block in root_blocks(sch)):
        return None
    return Rows(count, {n: axis for n, axis in axes.items() if axis is not None})


def _row_axis(shape: Sequence[Any], count: tirx.Var) -> int | None:
    """Return the axis that counts rows, None when there is none, -1 where a row would not be in one piece."""
    at = [n for n, x in enumerate(shape) if not isinstance(x, tirx.IntImm)]
    if not at:
        return None
    plain = len(at) == 1 and shape[at[0]].same_as(count) and all(int(x) == 1 for x in shape[: at[0]])
    return at[0] if plain else -1


def _is_independent(sch: s_tir.Schedule, block: Any, count: tirx.Var) -> bool:
    """Tell whether a block makes each row of the same row of what it reads, and does not ask which one it is."""
    stmt = sch.get(block)
    loops = [sch.get(loop) for loop in sch.get_loops(block)]
    realize = loops[-1].body if loops else None
    if not isinstance(realize, SBlockRealize) or not _is_true(realize.predicate):
        return False
    over = [v for v in stmt.iter_vars if not isinstance(v.dom.extent, tirx.IntImm)]
    if len(over) > 1 or any(v.iter_type != tirx.IterVar.DataPar or not v.dom.extent.same_as(count) for v in over):
        return False
    wide = [loop for loop in loops if not isinstance(loop.extent, tirx.IntImm)]
    if len(wide) != len(over) or any(not loop.extent.same_as(count) for loop in wide):
        return False
    bound = dict(zip([v.var.name for v in stmt.iter_vars], realize.iter_values, strict=True))
    if over and not bound[over[0].var.name].same_as(wide[0].loop_var):
        return False
    return _reads_own_rows(stmt, over[0].var if over else None, count)


def _is_true(predicate: Any) -> bool:
    return isinstance(predicate, tirx.IntImm) and bool(int(predicate))


def _reads_own_rows(block: Any, row: tirx.Var | None, count: tirx.Var) -> bool:
    """Tell whether the row is used as the row of what is read and written, and the number of rows not at all."""
    names: list[tirx.Var] = []
    for stmt in statements_of(block):
        structural_walk(stmt, (tirx.Var, names.append))
    axes = [(_row_axis(list(buffer.shape), count), indices) for buffer, indices in touched(block)]
    if any(axis == -1 or (axis is not None and not indices[axis].same_as(row)) for axis, indices in axes):
        return False
    # A tensor's type names the number of rows once, wherever the tensor is named.
    rows = sum(axis is not None for axis, _ in axes)
    return sum(v.same_as(count) for v in names) == rows and (row is None or sum(v.same_as(row) for v in names) == rows)


def schedule_rows(func: tirx.PrimFunc, rows: Rows, serve: Serve) -> tirx.PrimFunc:
    """Return a function of independent rows as loops over tiles.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        As fused, before any schedule.
    rows : Rows
        As :func:`independent_rows` gives them.
    serve : callable
        Schedules a tile: a function of a known number of rows, whose weights are not packed beforehand.
    """
    longest = max(math.prod(int(x) for x in func.params[n].shape if isinstance(x, tirx.IntImm)) for n in rows.axes)
    extents = _TILES[-1:] if longest >= _ENOUGH else _TILES
    parts = {extent: _Part(func, rows, extent, serve(_tile(func, rows, extent))) for extent in extents}
    body = parts[extents[-1]].loop(_int(0), rows.count)
    if len(extents) > 1:
        most, few, _ = extents
        whole = tirx.floordiv(rows.count, most)
        rest = tirx.floordiv(rows.count - whole * most + (few - 1), few)
        many = tirx.SeqStmt([parts[most].loop(_int(0), whole), parts[few].loop(whole * most, rest)])
        body = tirx.IfThenElse(rows.count >= few, many, body)
    root = SBlock([], [], [], "root", body)
    return func.with_body(SBlockRealize([], _TRUE, root))


def _tile(func: tirx.PrimFunc, rows: Rows, extent: int) -> tirx.PrimFunc:
    """Return the function for so many rows."""
    place = next(iter(rows.axes))
    param = func.params[place]
    shape = [*param.shape]
    shape[rows.axes[place]] = _int(extent)
    known = func.specialize({param: tirx.decl_buffer(shape, str(param.dtype), param.name)})
    # Packed beforehand, a weight would be there once for each kind of tile.
    return known.without_attr("layout_free_buffers")


@dataclass(frozen=True)
class _Part:
    """The rows of a function by tiles of so many, each computed as its own function does."""

    func: tirx.PrimFunc
    rows: Rows
    extent: int
    tile: tirx.PrimFunc

    def loop(self, first: Any, count: Any) -> tirx.Stmt:
        """Return the loop over so many tiles from that row on; the last one ends with the last row at the latest."""
        axis, loop = tirx.Var("v_tile", "int64"), tirx.Var("tile", "int64")
        views = self._views(tirx.min(first + axis * self.extent, self.rows.count - self.extent))
        body, allocated = renamed_root(self.tile.body.block, {part: view.buffer for part, view in views.items()})
        regions = [view.source for view in views.values()]
        axes = [tirx.IterVar(Range(0, count), axis, tirx.IterVar.DataPar)]
        name = f"rows{self.extent}"
        block = SBlock(axes, regions, regions, name, body, None, allocated, list(views.values()))
        return tirx.For(loop, _int(0), count, tirx.ForKind.SERIAL, SBlockRealize([loop], _TRUE, block))

    def _views(self, start: Any) -> dict[tirx.Var, MatchBufferRegion]:
        """Return what the tile's parameters are of the function's."""
        views = {}
        for place, (whole, part) in enumerate(zip(self.func.params, self.tile.params, strict=True)):
            at, shape = self.rows.axes.get(place), [*whole.shape]
            ranges = [Range(0, x) for x in shape]
            if at is not None:
                shape[at], ranges[at] = _int(self.extent), Range.from_min_extent(start, _int(self.extent))
            view = tirx.decl_buffer(shape, str(part.dtype), part.name, offset_factor=1)
            views[part] = MatchBufferRegion(view, tirx.BufferRegion(whole, ranges))
        return views


def _int(value: int) -> tirx.IntImm:
    return tirx.IntImm("int64", value)
