"""Read functions that reduce rows (softmax, norms, means), and the steps that compute a row in one go.

A row is what one element of the reductions' results belongs to; its columns are what is reduced, and what is written
with the results at hand. Where the reduced axes are stored inside (softmax over the last axis), vectors run along a
row; where another axis is (a mean over height and width of NHWC), a vector holds the same column of several rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule import elementwise
from qimeng_tvm.schedule.analysis import block_name, block_names, is_reduction, root_blocks
from qimeng_tvm.schedule.contract import BlockInfo, Choose, Decision, SearchSpace, Values
from qimeng_tvm.schedule.elementwise import fuse_joined, is_injective, loads_of, realize_of, uses
from qimeng_tvm.schedule.row_groups import axis_extent, group_in, is_row_reduction, shared_rows, split_groups
from qimeng_tvm.schedule.vector_math import is_expensive

_REDUCE = tirx.IterVar.CommReduce
#: Partial results that a reduction along rows ends with: below, scalars are as fast as shuffles.
_LAST_SUMS = 4
#: Vectors at a time, at most, where rows need one another.
_WIDE = 8


@dataclass(frozen=True)
class RowPlan:
    """Chosen values of the decisions, and what follows from them.

    Attributes
    ----------
    threads : int
        Cores that share the rows.
    lanes : int
        Elements of a vector.
    accumulators : int
        Vectors of partial results of a reduction along rows.
    together : int
        Rows that are computed at a time, where vectors run across rows.
    """

    threads: int
    lanes: int
    accumulators: int
    together: int

    @property
    def side_by_side(self) -> int:
        """Elements that are computed at a time."""
        if self.lanes < self.together <= elementwise.MOST_VECTORS * self.lanes:
            return self.together
        # LLVM fills vectors of other lengths up to a power of two.
        return max(self.lanes, math.gcd(self.together, _WIDE * self.lanes))


def normalize(sch: Schedule) -> SBlockRV | None:
    """Inline what is worth computing again; return the last block, or None when the function is of another kind.

    What stays: reductions, what is computed once a row from their results, elementary functions that several blocks
    read, and the outputs.
    """
    if not all(_is_understood(sch.get(b)) for b in root_blocks(sch)):
        return None
    if not any(is_reduction(sch, b) for b in root_blocks(sch)):
        return None
    names = [block_name(sch, b) for b in root_blocks(sch)]
    for name in names[:-1]:
        block = sch.get_sblock(name)
        if not _stays(sch, block):
            try:
                sch.compute_inline(block)
            except s_tir.ScheduleError:
                return None
    for block in root_blocks(sch):
        split_groups(sch, block)
    out = root_blocks(sch)[-1]
    return out if row_axes(sch, out) is not None else None


def _is_understood(block: Any) -> bool:
    if not all(isinstance(v.dom.extent, tirx.IntImm) and int(v.dom.extent) > 0 for v in block.iter_vars):
        return False
    return is_injective(block) or is_row_reduction(block)


def _stays(sch: Schedule, block: SBlockRV) -> bool:
    if is_reduction(sch, block):
        return True
    body = sch.get(block).body
    if any(body.buffer.same_as(p) for p in sch.mod["main"].params):
        return True
    if _is_of_rows(sch, block):
        return True
    return is_expensive(body.value) and len(sch.get_consumers(block)) > 1


def _is_of_rows(sch: Schedule, block: SBlockRV) -> bool:
    """Tell whether a block computes from reductions' results alone, once a row."""
    written = sch.get(block).body.buffer
    made = {block_name(sch, b) for b in sch.get_producers(block)}
    rows = [b for b in root_blocks(sch) if block_name(sch, b) in made and (is_reduction(sch, b) or _is_of_rows(sch, b))]
    return bool(rows) and _size(written) <= max(_size(sch.get(b).writes[0].source) for b in rows)


def _size(buffer: tirx.Buffer) -> int:
    return math.prod(int(x) for x in buffer.shape)


def row_axes(sch: Schedule, block: SBlockRV) -> list[int] | None:
    """Return which axes of a block, by position, are of rows; None when that cannot be said.

    Those that index the results of reductions: in what the block writes, or else reads, or else where a reduction
    reads what it writes.
    """
    stmt = sch.get(block)
    axes = [v.var for v in stmt.iter_vars]
    if is_reduction(sch, block) or _is_of_rows(sch, block):
        return [n for n, v in enumerate(stmt.iter_vars) if v.iter_type != _REDUCE]
    made = [sch.get(b).writes[0].source for b in root_blocks(sch) if is_reduction(sch, b) or _is_of_rows(sch, b)]
    indices = [i for load in loads_of(stmt.body) if any(load.source.same_as(m) for m in made) for i in load.indices]
    if not indices:
        indices = _kept_indices(sch, block)
    indices = [group_in(stmt, i) for i in indices]
    if not all(isinstance(i, (tirx.Var, tirx.IntImm)) for i in indices):
        return None
    return [n for n, v in enumerate(axes) if any(v.same_as(i) for i in indices)]


def _kept_indices(sch: Schedule, block: SBlockRV) -> list[Any]:
    """Indices of what a block writes that a reduction, which reads it, does not reduce."""
    stmt = sch.get(block)
    for reader in (sch.get(b) for b in reductions_of(sch)):
        kept = [v.var for v in reader.iter_vars if v.iter_type != _REDUCE]
        for load in loads_of(reader.body.value):
            if load.source.same_as(stmt.body.buffer):
                pairs = zip(stmt.body.indices, load.indices, strict=True)
                return [mine for mine, theirs in pairs if any(uses(theirs, v) for v in kept)]
    return []


def is_along(sch: Schedule) -> bool:
    """Tell whether the reduced axes are stored inside: vectors then run along rows."""
    for block in (sch.get(b) for b in root_blocks(sch) if is_reduction(sch, b)):
        reduced = [v.var for v in block.iter_vars if v.iter_type == _REDUCE and int(v.dom.extent) > 1]
        for load in loads_of(block.body.value):
            if any(uses(i, r) for i in load.indices for r in reduced):
                return any(uses(load.indices[-1], r) for r in reduced)
    return True


def describe(sch: Schedule, anchor: SBlockRV, func: tirx.PrimFunc, threads: int) -> BlockInfo | None:
    """Return what a rule needs to know: m rows, k columns of each are reduced; ``transpose_a``: rows are stored inside.

    Of the rows, n at a time need one another.

    Parameters
    ----------
    sch : tvm.s_tir.Schedule
        Of ``func``, normalized.
    anchor : SBlockRV
        The last block.
    func : tvm.tirx.PrimFunc
        The function before any step.
    threads : int
        Cores the operator may use.
    """
    before = block_names(func)
    reductions = [sch.get(b) for b in root_blocks(sch) if is_reduction(sch, b)]
    first = reductions[0]
    kept = [int(v.dom.extent) for v in first.iter_vars if v.iter_type != _REDUCE]
    reduced = [int(v.dom.extent) for v in first.iter_vars if v.iter_type == _REDUCE]
    inner = sch.get(anchor).body.indices
    along = is_along(sch)
    return BlockInfo(
        name=block_name(sch, anchor),
        kind="rowwise",
        batch=1 if along else max(1, math.prod(kept) // _last_extent(first)),
        m=math.prod(kept) if along or not inner else _last_extent(first),
        n=max(shared_rows(block) for block in reductions),
        k=math.prod(reduced),
        a_dtype=str(loads_of(first.body.value)[-1].source.dtype),
        b_dtype=str(first.body.buffer.dtype),
        acc_dtype=str(first.body.buffer.dtype),
        out_dtype=str(sch.get(anchor).body.buffer.dtype),
        transpose_a=not along,
        producers=tuple(before[:-1]),
        threads=threads,
    )


def _last_extent(block: Any) -> int:
    """Extent of the axis that what a block writes is indexed by last."""
    index = block.body.indices[-1]
    return axis_extent(block, index) if isinstance(index, tirx.Var) else 1


def space(info: BlockInfo, hardware: Hardware, lanes: int) -> SearchSpace:
    """Return the decisions of a row-wise function with analytic defaults.

    Parameters
    ----------
    info : BlockInfo
        What :func:`describe` found.
    hardware : Hardware
        The machine.
    lanes : int
        Elements of a vector register.
    """
    shares = info.batch * info.m
    cycles = 4.0 * shares * info.k / lanes
    threads = tuple(sorted({1, max(1, info.threads)}))
    worth = cycles > 2 * hardware.pipeline.fork and shares >= info.threads
    together = _groups(info.m, info.n, lanes) if info.transpose_a else (1,)
    accumulators = tuple(n for n in (1, 2, 4) if n == 1 or (not info.transpose_a and n * lanes <= info.k))
    return SearchSpace(
        (
            Decision("threads", threads, threads[-1] if worth else 1, "cores that share the rows"),
            Decision("accumulators", accumulators, _accumulators(accumulators, info.k, lanes), "vectors of sums a row"),
            Decision("together", together, _together(together, info), "rows at a time where vectors run across rows"),
        )
    )


def _together(candidates: tuple[int, ...], info: BlockInfo) -> int:
    """Return the most rows at a time; where they need one another, the most that leave every core its share."""
    shared = [w for w in candidates if info.n > 1 and info.batch * info.m // w >= info.threads]
    return (shared or candidates)[-1]


def _groups(rows: int, shared: int, lanes: int) -> tuple[int, ...]:
    """Return numbers of rows that vectors may hold side by side: divisors; all rows, where there is none of use."""
    most = (elementwise.MOST_VECTORS if shared == 1 else _WIDE) * lanes
    found = tuple(w for w in range(min(lanes, 8), most + 1) if rows % w == 0 and w % 4 == 0 and w % shared == 0)
    return found or (rows,)


def _accumulators(candidates: tuple[int, ...], columns: int, lanes: int) -> int:
    """Return the most for which no rest is left, or only a small one."""
    good = [n for n in candidates if columns % (n * lanes) == 0 or columns >= 16 * n * lanes]
    return good[-1] if good else 1


def plan_of(choose: Choose, lanes: int) -> RowPlan:
    """Ask for every decision."""
    return RowPlan(choose("threads"), lanes, choose("accumulators"), choose("together"))


def estimate(values: Values, info: BlockInfo, hardware: Hardware, lanes: int) -> float:
    """Return cycles: a few for a vector of each row, the chain of a horizontal reduction, the fork."""
    threads = int(values["threads"])
    chain = hardware.pipeline.latency * (info.k / lanes / int(values["accumulators"]) + 3 * _LAST_SUMS)
    busy = 4.0 * info.k / lanes
    rows = info.batch * info.m / (int(values["together"]) if info.transpose_a else 1)
    return rows * max(chain, busy) / threads + (hardware.pipeline.fork if threads > 1 else 0)


def reductions_of(sch: Schedule) -> list[SBlockRV]:
    """The blocks that reduce, in program order."""
    return [b for b in root_blocks(sch) if is_reduction(sch, b)]


def regroup(sch: Schedule, plan: RowPlan, *, along: bool) -> bool:
    """Give every block the loops (row, columns, reduced columns[, rows side by side]); tell whether there are rows.

    All axes of rows are one loop. Where vectors run along rows (``along``), so are all reduced columns, the innermost
    loop; else each is a loop of its own, and ``plan.together`` rows of an iteration of the first loop come innermost.
    A function of a single row has no loop over rows.
    """
    blocks = root_blocks(sch)
    axes = [row_axes(sch, block) or [] for block in blocks]
    for block, rows in zip(blocks, axes, strict=True):
        _regroup(sch, block, rows, plan.together, along=along)
    return any(axes)


def row_loops(sch: Schedule, has_rows: bool) -> list[LoopRV]:
    """Return the loop over rows of every block, in program order; of a single row, a loop that is made around it."""
    return [sch.get_loops(block)[0] if has_rows else _unit_loop(sch, block) for block in root_blocks(sch)]


def keep_near(sch: Schedule, block: SBlockRV) -> None:
    """Put what a block writes for a row near the core, unless it is an output of the function."""
    written = sch.get(block).writes[0].source
    if not any(written.same_as(p) for p in sch.mod["main"].params):
        sch.set_scope(block, 0, "local")


def _regroup(sch: Schedule, block: SBlockRV, rows: list[int], together: int, *, along: bool) -> None:
    """Give a block the axes (row, columns, reduced, rows side by side), each of the outer and inner rows as one."""
    axes = list(sch.get(block).iter_vars)
    extents = [int(v.dom.extent) for v in axes]
    reduced = [n for n, v in enumerate(axes) if v.iter_type == _REDUCE]
    columns = [n for n in range(len(axes)) if n not in rows and n not in reduced]

    def moved(*index: Any) -> list[Any]:
        def one(group: list[int]) -> Any:
            value: Any = index[group[0]]
            for n in group[1:]:
                value = value * extents[n] + index[n]
            return value

        inner = [one(reduced)] if along and reduced else [index[n] for n in reduced]
        middle = [index[n] for n in columns]
        if along or not rows:
            return [*([one(rows)] if rows else []), *middle, *inner]
        side = index[rows[-1]]
        outer = one(rows[:-1]) * (extents[rows[-1]] // together) if rows[:-1] else 0
        return [outer + side // together, *middle, *inner, side % together]

    if axes:
        index_map = tirx.IndexMap.from_func(moved, len(axes), index_dtype=str(axes[0].var.ty.dtype))
        sch.transform_block_layout(block, index_map)


def _unit_loop(sch: Schedule, block: SBlockRV) -> LoopRV:
    """Make a loop of one row around a block of a function that has but one."""
    loops = sch.get_loops(block)
    return sch.add_unit_loop(loops[0] if loops else block)


def partial_width(extent: int, most: int, lanes: int) -> int:
    """Return how many partial results to reduce so many columns to: a divisor, best one that fills vectors; 1 for none.

    A rest of columns cannot be left: TVM takes no reduction with bounds for one that may be shared out or placed.
    """
    found = [w for w in range(2, most + 1) if extent % w == 0 and w < extent]
    return max(found, key=lambda w: (w / math.ceil(w / min(lanes, most)), w), default=1)


@dataclass(frozen=True)
class Below:
    """The loops of a block below its loop over rows.

    Attributes
    ----------
    kept : tuple of LoopRV
        Over what it writes, outermost first; empty when it writes one number a row.
    reduced : tuple of LoopRV
        Over what it sums up or takes the largest of; empty when it does no such thing.
    """

    kept: tuple[LoopRV, ...]
    reduced: tuple[LoopRV, ...]


def loops_below(sch: Schedule, block: SBlockRV, row: LoopRV) -> Below:
    """Return a block's loops below its loop over rows; of one that reduces nothing, joined where they can be."""
    below = _below(sch, block, row)
    if not below:
        return Below((), ())
    values = realize_of(sch, block).iter_values
    axes = list(sch.get(block).iter_vars)
    bound = [axes[next(n for n, v in enumerate(values) if uses(v, sch.get(loop).loop_var))] for loop in below]
    reduced = [loop for loop, axis in zip(below, bound, strict=True) if axis.iter_type == _REDUCE]
    kept = [loop for loop, axis in zip(below, bound, strict=True) if axis.iter_type != _REDUCE]
    if not reduced:
        kept = fuse_joined(sch, block, below, [axis.var for axis in bound])
    return Below(tuple(kept), tuple(reduced))


def _below(sch: Schedule, block: SBlockRV, row: LoopRV) -> list[LoopRV]:
    loops: list[LoopRV] = list(sch.get_loops(block))
    at = next(n for n, loop in enumerate(loops) if sch.get(loop).loop_var.same_as(sch.get(row).loop_var))
    return loops[at + 1 :]
