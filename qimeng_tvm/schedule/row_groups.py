"""Which blocks reduce rows, and axes of which groups are reduced: group norms, and their like.

An axis in groups is read as ``group * size + place``, of which rows have the group and a reduction all places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from qimeng_tvm.schedule.analysis import is_reduction
from qimeng_tvm.schedule.elementwise import loads_of, uses

_REDUCE = tirx.IterVar.CommReduce


def is_row_reduction(block: Any) -> bool:
    """Tell whether a block reduces one tensor, each of whose elements it reads once: no window, no product of two.

    One axis may come in groups that are reduced; of two that do, windows are made.
    """
    if block.init is None or not isinstance(block.body, tirx.BufferStore):
        return False
    kept = [v.var for v in block.iter_vars if v.iter_type != _REDUCE]
    reduced = [v.var for v in block.iter_vars if v.iter_type == _REDUCE]
    loads = [load for load in loads_of(block.body.value) if not load.source.same_as(block.body.buffer)]
    main = [load for load in loads if all(any(uses(i, r) for i in load.indices) for r in reduced)]
    if not main or not all(load.source.same_as(main[0].source) for load in main):
        return False
    whole = [v for v in kept if axis_extent(block, v) > 1]
    return all(
        all(any(uses(i, v) for i in load.indices) for v in whole)
        and all(_is_apart(block, i, whole, reduced) for i in load.indices)
        and sum(_is_mixed(i, whole, reduced) for i in load.indices) <= 1
        for load in main
    )


def _is_mixed(index: Any, kept: Sequence[tirx.Var], reduced: Sequence[tirx.Var]) -> bool:
    return any(uses(index, r) for r in reduced) and any(uses(index, k) for k in kept)


def _is_apart(block: Any, index: Any, kept: Sequence[tirx.Var], reduced: Sequence[tirx.Var]) -> bool:
    """Tell whether an index is of a row or of a column; or of both, as the place in a group."""
    mixed = [r for r in reduced if uses(index, r)]
    return not mixed or not any(uses(index, k) for k in kept) or _group_of(block, index, mixed) is not None


def _group_of(block: Any, index: Any, reduced: Sequence[tirx.Var]) -> int | None:
    """Return the size of the groups of an index ``group * size + place``, where all places are reduced; else None."""
    if not isinstance(index, tirx.Add) or not isinstance(index.a, tirx.Mul) or not isinstance(index.a.b, tirx.IntImm):
        return None
    size = int(index.a.b)
    whole = len(reduced) == 1 and index.b.same_as(reduced[0]) and axis_extent(block, reduced[0]) == size
    return size if whole and not uses(index.a, reduced[0]) else None


def shared_rows(block: Any) -> int:
    """Return how many rows side by side a reduction brings together; 1 where each row stays for itself."""
    reduced = [v.var for v in block.iter_vars if v.iter_type == _REDUCE]
    for load in loads_of(block.body.value):
        for index in load.indices:
            mixed = [r for r in reduced if uses(index, r)]
            size = _group_of(block, index, mixed) if mixed else None
            if size is not None and isinstance(index.a.a, tirx.FloorDiv):
                return size
    return 1


def axis_extent(block: Any, var: tirx.Var) -> int:
    """Return the extent of a block's axis."""
    return next(int(v.dom.extent) for v in block.iter_vars if v.var.same_as(var))


def split_groups(sch: Schedule, block: SBlockRV) -> None:
    """Give a block that reads the results of groups of an axis that axis as two: which group, and where in it."""
    stmt = sch.get(block)
    made = [sch.get(b).writes[0].source for b in sch.get_producers(block)]
    reads = [i for load in loads_of(stmt.body) if any(load.source.same_as(m) for m in made) for i in load.indices]
    divided = [i for i in reads if isinstance(i, tirx.FloorDiv) and isinstance(i.a, tirx.Var)]
    sizes = {i.a.name: int(i.b) for i in divided if isinstance(i.b, tirx.IntImm)}
    names = [v.var.name for v in stmt.iter_vars]
    if is_reduction(sch, block) or not sizes:
        return

    def parts(*index: Any) -> list[Any]:
        split = [[i // sizes[n], i % sizes[n]] if n in sizes else [i] for n, i in zip(names, index, strict=True)]
        return [part for axis in split for part in axis]

    dtype = str(stmt.iter_vars[0].var.ty.dtype)
    sch.transform_block_layout(block, tirx.IndexMap.from_func(parts, len(names), index_dtype=dtype))


def group_in(block: Any, index: Any) -> Any:
    """Return the group of an index ``(group * size + place) // size``, which TVM leaves as it is; or the index."""
    if not isinstance(index, tirx.FloorDiv) or not isinstance(index.a, tirx.Add):
        return index
    place = index.a.b
    size = _group_of(block, index.a, [place]) if isinstance(place, tirx.Var) else None
    return index.a.a.a if size is not None and size == int(index.b) else index
