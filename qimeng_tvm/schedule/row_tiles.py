"""Functions of a number of rows that is not known: as many calls of functions of known ones, which rules serve.

Of a function that computes each row from the same row of its inputs alone, any rows may be computed, in any order, and
twice: the last tile begins so early that it ends with the last row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm_ffi import structural_walk

from qimeng_tvm.schedule.analysis import root_blocks

#: Rows of a tile, the most first; with 1, any number of rows can be had.
_TILES = (64, 8, 1)
#: Elements that a tile is made to compute at least, where rows are long: one of fewer rows is enough then.
_ENOUGH = 1 << 16
#: Elements of a tensor up to which int32 indexes it.
_NARROW = 1 << 30

#: From a function of known shapes to its schedule; None when no rule serves it.
Serve = Callable[[tirx.PrimFunc], tirx.PrimFunc | None]


def schedule_rows(func: tirx.PrimFunc, serve: Serve) -> tirx.PrimFunc | None:
    """Return a function of an unknown number of rows as loops over tiles of known ones; None if it cannot be had.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        As fused, before any schedule.
    serve : callable
        Schedules a tile.
    """
    rows = row_axes(func)
    if rows is None:
        return None
    count, axes = rows
    parts = []
    for extent in _TILES:
        tile = _tile(func, axes, extent)
        scheduled = serve(tile)
        if scheduled is None:
            return None
        parts.append((extent, scheduled))
    return _joined(func, count, axes, parts)


def row_axes(func: tirx.PrimFunc) -> tuple[tirx.Var, Mapping[int, int]] | None:
    """Return the unknown number of rows, and by parameter which axis counts them; None if rows are not independent."""
    shapes = {n: list(p.shape) for n, p in enumerate(func.params) if hasattr(p, "shape")}
    unknown = {x for shape in shapes.values() for x in shape if not isinstance(x, tirx.IntImm)}
    if len(shapes) < len(func.params) or len(unknown) != 1 or not isinstance(count := next(iter(unknown)), tirx.Var):
        return None
    axes = {n: axis for n, shape in shapes.items() if (axis := _row_axis(shape, count)) is not None}
    holding = {n for n, shape in shapes.items() if any(count.same_as(x) for x in shape)}
    return (count, axes) if set(axes) == holding and _independent(func, count) else None
