"""Small schedule steps that rules are made of; each does one thing and returns what it made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.intrin import ensure_registered
from qimeng_tvm.schedule.analysis import (
    Contraction,
    Operand,
    blocks_behind,
    contraction_of,
    index_map,
    planes_inside,
    planes_map,
    planes_order,
)

#: Block annotation (TVM MetaSchedule): this copy can be done once, at compile time.
PREPACK = "meta_schedule.layout_rewrite_preproc"
#: Axes of a matrix; others are batch axes.
_MATRIX = ("m", "n", "k")


def _panels(axes: Sequence[str], place: Callable[[dict[str, Any]], list[Any]]) -> Any:
    """Map an operand to its batch axes and then what ``place`` makes of the axes of a matrix."""
    order = planes_order(tuple(axes))
    batch = [i for i in order if axes[i] not in _MATRIX]

    def moved(*index: Any) -> list[Any]:
        return [index[i] for i in batch] + place({axes[i]: index[i] for i in order if axes[i] in _MATRIX})

    return index_map(len(axes), moved)


def row_panels(axes: Sequence[str], mr: int, kc: int) -> Any:
    """Map A to (.., M / mr, K / kc, mr, kc): rows stay contiguous, so packing is a plain vector copy."""
    return _panels(axes, lambda at: [at["m"] // mr, at["k"] // kc, at["m"] % mr, at["k"] % kc])


def k_panels(axes: Sequence[str], axis: str, width: int, k_pack: int) -> Any:
    """Map an operand to (.., width blocks, K / P, width[, P]): what one k step reads is contiguous."""

    def place(at: dict[str, Any]) -> list[Any]:
        lane, k = at[axis], at["k"]
        if k_pack == 1:
            return [lane // width, k, lane % width]
        return [lane // width, k // k_pack, lane % width, k % k_pack]

    return _panels(axes, place)


def parts_of(sch: Schedule, anchor: SBlockRV) -> Contraction:
    """Take the anchor apart; possible until its operands are packed."""
    parts = contraction_of(sch.get(anchor))
    assert parts is not None
    return parts


def pad(sch: Schedule, anchor: SBlockRV, extents: dict[str, int]) -> None:
    """Pad the anchor's iteration space to ``extents``; what copies that makes is packed or fused later."""
    parts = parts_of(sch, anchor)
    if all(extents[axis] == parts.extents[axis] for axis in "mnk"):
        return
    sch.pad_einsum(anchor, [extents[axis] if axis in "mnk" else 1 for axis in parts.loops])


def _source(sch: Schedule, anchor: SBlockRV, operand: Operand) -> Any:
    """The buffer that the anchor reads for an operand now (copies and packing change it)."""
    return sch.get(anchor).reads[operand.read_index].source


def copy_block(sch: Schedule, anchor: SBlockRV, operand: Operand) -> SBlockRV | None:
    """The block that already copies an operand (padding made it), if there is one."""
    source = _source(sch, anchor, operand)
    for block in sch.get_producers(anchor):
        if sch.get(block).writes[0].source.same_as(source):
            return block
    return None


def pack(
    sch: Schedule, anchor: SBlockRV, operand: Operand, layout: Any, store: str, *, separate: bool = False
) -> SBlockRV:
    """Make (or take over) the copy of an operand and give it the panel layout; return the copying block.

    With ``separate``, an intrinsic shuffles matrices: it can only replace a plain copy of one that lies in one piece. A
    copy that padding made stays before it, or one is made that brings matrices together.
    """
    axes = operand.axes
    if separate and not planes_inside(axes):
        gathered = copy_block(sch, anchor, operand) or sch.cache_read(anchor, operand.read_index, "global")
        sch.transform_layout(anchor, ("read", operand.read_index), planes_map(axes))
        _batch_outside(sch, gathered, axes)
        order = planes_order(axes)
        axes, given = tuple(axes[i] for i in order), layout
        layout = index_map(len(axes), lambda *index: given(*(index[order.index(i)] for i in range(len(order)))))
    block = None if separate else copy_block(sch, anchor, operand)
    if block is None:
        block = sch.cache_read(anchor, operand.read_index, "global")
    if store != str(_source(sch, anchor, operand).dtype):
        sch.unsafe_set_dtype(block, 0, store)
    sch.transform_layout(anchor, ("read", operand.read_index), layout)
    _batch_outside(sch, block, axes)
    return block


def _batch_outside(sch: Schedule, block: SBlockRV, axes: Sequence[str]) -> None:
    """Loop over matrices outside, whatever the order in which they are stored."""
    order = planes_order(tuple(axes))
    if order != list(range(len(axes))):
        loops = sch.get_loops(block)
        sch.reorder(*(loops[i] for i in order))


def write_back(sch: Schedule, anchor: SBlockRV, make: bool, scope: str) -> SBlockRV | None:
    """Return the one elementwise block behind the anchor: the epilogue, a copy out of the padded C, or a new copy."""
    behind = blocks_behind(sch, anchor)
    if not behind:
        return sch.cache_write(anchor, 0, scope) if make else None
    for block in behind[:-1]:
        sch.compute_inline(block)
    return behind[-1]


def vectorize_inner(sch: Schedule, block: SBlockRV, lanes: int, unroll: int = 0) -> None:
    """Vectorize the block's innermost loop by ``lanes``; unroll that many loops outside it."""
    loop = sch.get_loops(block)[-1]
    extent = int(sch.get(loop).extent)
    while lanes > 1 and extent % lanes:
        lanes //= 2
    if lanes > 1:
        _, inner = sch.split(loop, [None, lanes])
        sch.vectorize(inner)
    else:
        unroll -= 1  # one loop fewer below the caller's
    if unroll > 0:
        for outer in sch.get_loops(block)[-1 - unroll : -1]:
            sch.unroll(outer)


def tensorize(sch: Schedule, loop: LoopRV, name: str) -> None:
    """Register the intrinsic of that canonical name and put it in place of the loop nest."""
    ensure_registered(name)
    sch.tensorize(loop, name)
