"""Schedule what no rule serves, block by block: outer loops shared between the cores, inner ones vectorized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.schedule import elementwise
from qimeng_tvm.schedule.analysis import is_reduction, root_blocks
from qimeng_tvm.schedule.apply import REFUSALS, narrow_indices
from qimeng_tvm.schedule.vector_math import is_expensive

#: Elements at a time; LLVM takes vectors apart on machines with narrower ones.
_LANES = 16
#: Elements that a block writes, at least, for its loops to be shared out.
_WORTH = 1 << 14


def schedule(func: tirx.PrimFunc, threads: int = 1) -> tirx.PrimFunc:
    """Return the function with what TVM lets be done for speed; the function as it is, if nothing can be.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        Any function of blocks; shapes may be symbolic.
    threads : int
        Cores it may use.
    """
    narrow = _attempt(lambda: narrow_indices(func))
    func = func if narrow is None else narrow
    scheduled = _attempt(lambda: _scheduled(func, threads))
    return func if scheduled is None else scheduled


def _attempt(step: Callable[[], Any]) -> Any | None:
    """Return what a step gives, None where TVM refuses it: the schedule is then as it was."""
    try:
        return step()
    except REFUSALS:
        return None


def _scheduled(func: tirx.PrimFunc, threads: int) -> tirx.PrimFunc:
    sch = Schedule(func)
    for block in root_blocks(sch):
        if _is_worth_inlining(sch, block):
            _attempt(lambda block=block: sch.compute_inline(block))  # type: ignore[misc]
    for block in root_blocks(sch):
        if sch.get_loops(block):
            _attempt(lambda block=block: _schedule_block(sch, block, threads))  # type: ignore[misc]
    return sch.mod["main"]


def _is_worth_inlining(sch: Schedule, block: SBlockRV) -> bool:
    """Tell whether a block is cheap and read by blocks that use each element about once."""
    stmt = sch.get(block)
    readers = list(sch.get_consumers(block))
    return (
        elementwise.is_injective(stmt)
        and all(elementwise.is_injective(sch.get(r)) for r in readers)
        and (len(readers) == 1 or not is_expensive(stmt.body))
    )


def _schedule_block(sch: Schedule, block: SBlockRV, threads: int) -> None:
    kept, reduced = _loops(sch, block)
    side = _side_by_side(sch, block, kept)
    if side is not None and reduced:
        others = [loop for loop in kept if loop is not side]
        sch.reorder(*others, *reduced, side)
        kept = others
    elif side is not None:
        kept = kept[:-1]
    if side is not None:
        elementwise.vectorize(sch, block, _LANES)
    if threads > 1 and kept and _is_large(sch, block):
        _attempt(lambda: sch.parallel(sch.fuse(*kept) if len(kept) > 1 else kept[0]))
    if reduced and is_reduction(sch, block):
        zero = sch.decompose_reduction(block, reduced[0])
        if side is not None:
            _attempt(lambda: sch.vectorize(sch.get_loops(zero)[-1]))


def _loops(sch: Schedule, block: SBlockRV) -> tuple[list[LoopRV], list[LoopRV]]:
    """Loops of a block that are each bound to an axis: those of kept axes up to the first other one, and of reduced."""
    stmt, values = sch.get(block), elementwise.realize_of(sch, block).iter_values
    kind = {v.name: axis.iter_type for v, axis in zip(values, stmt.iter_vars, strict=True) if isinstance(v, tirx.Var)}
    kinds = [(loop, kind.get(sch.get(loop).loop_var.name)) for loop in sch.get_loops(block)]
    kept = [loop for loop, which in kinds if which == tirx.IterVar.DataPar]
    reduced = [loop for loop, which in kinds if which == tirx.IterVar.CommReduce]
    return (kept, reduced) if len(kept) + len(reduced) == len(kinds) else ([], [])


def _side_by_side(sch: Schedule, block: SBlockRV, kept: list[LoopRV]) -> LoopRV | None:
    """The loop over what a block writes side by side, if its extent is known and it can be vectorized as it is."""
    stmt = sch.get(block)
    if not isinstance(stmt.body, tirx.BufferStore) or not stmt.body.indices or not kept:
        return None
    bound = elementwise.realize_of(sch, block).iter_values
    axis = next((n for n, v in enumerate(stmt.iter_vars) if v.var.same_as(stmt.body.indices[-1])), None)
    last = kept[-1]
    if axis is None or not sch.get(last).loop_var.same_as(bound[axis]):
        return None
    return last if isinstance(sch.get(last).extent, tirx.IntImm) else None


def _is_large(sch: Schedule, block: SBlockRV) -> bool:
    """Tell whether a block has work to share; one of unknown extents may have."""
    count = 1
    for loop in sch.get_loops(block):
        extent = sch.get(loop).extent
        count *= int(extent) if isinstance(extent, tirx.IntImm) else _WORTH
    return count >= _WORTH
