"""Vectorise the copies that put GEMM operands into panels at run time.

A copy runs over the operand as it is stored; what is here splits and orders its loops so that panels are
written from front to back, puts a packing intrinsic (``tensorize_intrins/generic/pack.py``) in place of the
innermost loops where rows must be interleaved or transposed, and keeps the bounds checks of a padded operand
out of all but the last panel.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.intrin import IntrinFamily, ensure_registered, families

#: Loop annotation: TVM's LoopPartition peels the iterations that need a bounds check.
#: Loops of int64 it spoils (NarrowDataType renames the variable, in part): see ``narrow_indices``.
PEEL = "pragma_loop_partition_hint"
#: Bytes that one vector of a copy loads.
_VECTOR = 32
#: k that are copied for one panel before the next one's turn, and how many such turns there must be at least.
_BURST, _LEAST_BURSTS = 16, 8
#: Units along either side of a transposed tile, best first.
_SIDES = (8, 4)


def needs_shuffles(k_pack: int, transposed: bool) -> bool:
    """Tell whether packing panels along k is more than copying rows."""
    return k_pack > 1 or transposed


def peel(sch: Schedule, *loops: LoopRV) -> None:
    """Keep the bounds checks that depend on these loops out of all iterations that cannot fail them."""
    for loop in loops:
        nest = sch.get(loop)
        if str(nest.loop_var.ty.dtype) == "int32" and int(nest.extent) > 1:
            sch.annotate(loop, PEEL, True)


def pack_rows(sch: Schedule, block: SBlockRV, kc: int, *, transposed: bool, parallel: bool) -> None:
    """Vectorise the copy of A into (M / mr, K / kc, mr, kc): contiguous along k on both sides, unless transposed."""
    if transposed:
        k, m = sch.get_loops(block)[-2:]
        sch.reorder(m, k)
    _share(sch, block, parallel)
    loop = sch.get_loops(block)[-1]
    extent = int(sch.get(loop).extent)
    if extent > kc:
        # A vector must not run over the end of a panel.
        loop = sch.split(loop, [None, kc])[1]
    _vectorize(sch, loop, _lanes(sch, block), whole=False)


def pack_panels(sch: Schedule, block: SBlockRV, width: int, *, k_pack: int, transposed: bool, parallel: bool) -> None:
    """Vectorise the copy of an operand into (.., width blocks, K / P, width[, P]).

    Parameters
    ----------
    sch : tvm.s_tir.Schedule
        The schedule.
    block : SBlockRV
        The copy, its last two loops those of the stored matrix. A block that pads the operand may come before
        it (then it is fused, a few rows at a time) or be the same.
    width : int
        Columns (or rows, for A) of a panel.
    k_pack : int
        P.
    transposed : bool
        k is the inner axis of the operand as stored.
    parallel : bool
        Share the panels (of a batch: the matrices) out between the cores.
    """
    axes = sch.get_loops(block)[-2:]
    k, n = reversed(axes) if transposed else axes
    panel, lane = sch.split(n, [None, width])
    k, sub = sch.split(k, [None, k_pack])
    if transposed:
        sch.reorder(panel, k, lane, sub)
        _share(sch, block, parallel)
        _transpose(sch, block, (panel, k, lane, sub), k_pack)
        return
    # A whole row of panels, a few k at a time: long reads, and for each panel a few cache lines in one go.
    burst = _burst(int(sch.get(k).extent), k_pack)
    outer, k = sch.split(k, [None, burst])
    sch.reorder(outer, panel, k, lane, sub)
    _share(sch, block, parallel)
    peel(sch, outer, panel)
    if k_pack > 1:
        _interleave(sch, block, (k, lane, sub), k_pack)
    else:
        _vectorize(sch, lane, _lanes(sch, block), whole=True)
    peel(sch, k)


def _share(sch: Schedule, block: SBlockRV, parallel: bool) -> None:
    if parallel:
        sch.parallel(sch.get_loops(block)[0])


def _burst(steps: int, k_pack: int) -> int:
    """Return how many k steps to copy for one panel before the next; all, where no divisor is of use."""
    fitting = [d for d in range(1, steps // _LEAST_BURSTS + 1) if steps % d == 0 and d * k_pack <= _BURST]
    best = max(fitting, default=1)
    return best if best * k_pack * 4 > _BURST else steps


def _interleave(sch: Schedule, block: SBlockRV, loops: tuple[LoopRV, LoopRV, LoopRV], k_pack: int) -> None:
    """Interleave P rows: (k, lane, P) -> k, chunk, [P, lanes]."""
    k, lane, sub = loops
    family = _family(sch, block, "rows")
    lanes = _even_part(int(sch.get(lane).extent), _VECTOR // _bytes(_source(sch, block)))
    chunk, lane = sch.split(lane, [None, lanes])
    sch.reorder(k, chunk, sub, lane)
    _stage_padding(sch, block, k)
    if family is not None:
        _tensorize(sch, sub, family.intrin_name(k_pack=k_pack, lanes=lanes))


def _transpose(sch: Schedule, block: SBlockRV, loops: tuple[LoopRV, LoopRV, LoopRV, LoopRV], k_pack: int) -> None:
    """Transpose squares of S x S units: (panel, k, lane, P) -> panel, k / S, chunk, [S, S * P]."""
    panel, k, lane, sub = loops
    family = _family(sch, block, "tile")
    width, steps = int(sch.get(lane).extent), int(sch.get(k).extent)
    side = next((s for s in _SIDES if width % s == 0 and steps % s == 0), 0)
    if family is None or not side:
        # Write in order, gather a column: as good as scalar code gets.
        _stage_padding(sch, block, panel)
        return
    chunk, lane = sch.split(lane, [None, side])
    k, inner = sch.split(k, [None, side])
    sch.reorder(panel, k, chunk, lane, inner, sub)
    sch.fuse(inner, sub)
    _stage_padding(sch, block, chunk)
    peel(sch, panel, k)
    _tensorize(sch, lane, family.intrin_name(k_pack=k_pack, side=side))


def _stage_padding(sch: Schedule, block: SBlockRV, loop: LoopRV) -> None:
    """Pad just what one iteration of ``loop`` reads: small enough for LLVM to keep in registers."""
    for pad in sch.get_producers(block):
        sch.compute_at(pad, loop)
        _vectorize(sch, sch.get_loops(pad)[-1], _lanes(sch, pad), whole=True)


def _vectorize(sch: Schedule, loop: LoopRV, lanes: int, whole: bool) -> None:
    """Vectorise a loop; one whose extent is no multiple of ``lanes`` in narrower vectors, or with its rest peeled."""
    extent = int(sch.get(loop).extent)
    if whole:
        lanes = _even_part(extent, lanes)
    if extent > lanes:
        outer, loop = sch.split(loop, [None, lanes])
        peel(sch, outer)
    sch.vectorize(loop)


def _even_part(extent: int, lanes: int) -> int:
    """Return the largest power-of-two divisor of ``extent`` up to ``lanes``; all of a small odd extent."""
    while lanes > 1 and extent % lanes:
        lanes //= 2
    return lanes if lanes >= 4 or extent > 16 else extent


def _source(sch: Schedule, block: SBlockRV) -> Any:
    return sch.get(block).reads[0].source


def _target(sch: Schedule, block: SBlockRV) -> Any:
    return sch.get(block).writes[0].source


def _bytes(buffer: tirx.Buffer) -> int:
    return int(tirx.const(0, str(buffer.dtype)).ty.dtype.bits) // 8


def _lanes(sch: Schedule, block: SBlockRV) -> int:
    """Elements of a copy's vector: a vector register of its wider side."""
    return _VECTOR // max(_bytes(_source(sch, block)), _bytes(_target(sch, block)))


def _family(sch: Schedule, block: SBlockRV, kind: str) -> IntrinFamily | None:
    """Return the packing intrinsic for the copy's types, if there is one."""
    storage = (str(_source(sch, block).dtype), str(_target(sch, block).dtype))
    for family in families().values():
        if family.isa == "generic" and family.kind.startswith(f"pack_{kind}_") and family.storage == storage:
            return family
    return None


def _tensorize(sch: Schedule, loop: LoopRV, name: str) -> None:
    ensure_registered(name)
    sch.tensorize(loop, name)
