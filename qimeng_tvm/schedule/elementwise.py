"""Read functions without reductions, and the loops that serve them: axes joined, vectors, shares of the cores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tvm import DataType, s_tir, tirx
from tvm.ir import TensorLoad
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm_ffi import structural_walk

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule.analysis import block_name, block_names, root_blocks
from qimeng_tvm.schedule.contract import BlockInfo, Choose, Decision, SearchSpace, Values
from qimeng_tvm.schedule.packing import peel
from qimeng_tvm.schedule.vector_math import has_conditions, is_expensive

#: Vectors that one iteration may hold where the innermost axis is no multiple of a vector.
MOST_VECTORS = 4
#: Fewest elements for which a vector narrower than a register is better than a checked rest.
LEAST_LANES = 8
#: What an elementary function costs, in reads of an element.
_EXPENSIVE = 8


def is_injective(block: Any) -> bool:
    """Tell whether a block writes each element once, from values at hand."""
    return isinstance(block.body, tirx.BufferStore) and all(
        v.iter_type == tirx.IterVar.DataPar and isinstance(v.dom.extent, tirx.IntImm) for v in block.iter_vars
    )


def loads_of(stmt: Any) -> list[TensorLoad]:
    """Every element that a statement or an expression reads."""
    found: list[TensorLoad] = []
    structural_walk(stmt, (TensorLoad, found.append))
    return found


def uses(expr: Any, var: tirx.Var) -> bool:
    """Tell whether a variable appears in an expression."""
    found: list[bool] = []
    structural_walk(expr, (tirx.Var, lambda v: found.append(bool(v.same_as(var)))))
    return any(found)


def inline_all(sch: Schedule) -> None:
    """Inline every block that TVM lets be inlined into those that read it; outputs stay."""
    for block in root_blocks(sch)[:-1]:
        if not _is_output(sch, block):
            try:
                sch.compute_inline(block)
            except s_tir.ScheduleError:
                continue


def _is_output(sch: Schedule, block: SBlockRV) -> bool:
    written = sch.get(block).writes[0].source
    return any(written.same_as(p) for p in sch.mod["main"].params)


def normalize(sch: Schedule) -> SBlockRV | None:
    """Inline a function of injective blocks into its outputs; return the last, or None for another function."""
    blocks = root_blocks(sch)
    if not blocks or not all(is_injective(sch.get(b)) for b in blocks):
        return None
    inline_all(sch)
    return root_blocks(sch)[-1]


def describe(sch: Schedule, anchor: SBlockRV, func: tirx.PrimFunc, threads: int) -> BlockInfo | None:
    """Return what a rule needs to know: m elements are written, and k reads is what each costs.

    Parameters
    ----------
    sch : tvm.s_tir.Schedule
        Of ``func``, normalized.
    anchor : SBlockRV
        The last output.
    func : tvm.tirx.PrimFunc
        The function before any step.
    threads : int
        Cores the operator may use.
    """
    blocks = [sch.get(b) for b in root_blocks(sch)]
    sizes = [math.prod(int(v.dom.extent) for v in block.iter_vars) for block in blocks]
    if 0 in sizes:
        return None
    before = block_names(func)
    block = sch.get(anchor)
    reads = [str(load.source.dtype) for load in loads_of(block.body.value)]
    out = str(block.body.buffer.dtype)
    return BlockInfo(
        name=block_name(sch, anchor),
        kind="elementwise",
        batch=1,
        m=sum(sizes),
        n=1,
        k=max(len(b.reads) + _EXPENSIVE * is_expensive(b.body.value) for b in blocks),
        a_dtype=reads[0] if reads else out,
        b_dtype=reads[-1] if reads else out,
        acc_dtype=out,
        out_dtype=out,
        producers=tuple(before[:-1]),
        threads=threads,
    )


def realize_of(sch: Schedule, block: SBlockRV) -> Any:
    """What binds a block's axes to its loops."""
    return sch.get(sch.get_loops(block)[-1]).body


def joined(block: Any, axes: Sequence[tirx.Var]) -> list[list[tirx.Var]]:
    """Group axes, outermost first, that every buffer is indexed by side by side: one loop can run over a group.

    Parameters
    ----------
    block : tvm.tirx.SBlock
        Reads and writes by these axes.
    axes : sequence of Var
        Of the block, in the order of its loops.
    """
    store = block.body
    extents = {v.var.name: int(v.dom.extent) for v in block.iter_vars}
    indexed = [(store.buffer.shape, store.indices)]
    indexed += [(load.source.shape, load.indices) for load in loads_of(store)]
    groups = [[axes[0]]] if axes else []
    for left, right in pairwise(axes):
        if all(_side_by_side(shape, indices, left, right, extents[right.name]) for shape, indices in indexed):
            groups[-1].append(right)
        else:
            groups.append([right])
    return groups


def _side_by_side(shape: Any, indices: Any, left: tirx.Var, right: tirx.Var, extent: int) -> bool:
    """Tell whether a buffer has ``right`` as the whole of the dimension after ``left``'s, or neither of them."""
    used = [(uses(i, left), uses(i, right)) for i in indices]
    if not any(a or b for a, b in used):
        return True
    at = next((n for n, i in enumerate(indices[:-1]) if i.same_as(left)), None)
    return (
        at is not None
        and indices[at + 1].same_as(right)
        and int(shape[at + 1]) == extent
        and sum(a for a, _ in used) == 1
        and sum(b for _, b in used) == 1
    )


def fuse_joined(sch: Schedule, block: SBlockRV, loops: Sequence[LoopRV], axes: Sequence[tirx.Var]) -> list[LoopRV]:
    """Make one loop of each group of axes; ``loops`` are those that run over ``axes``. Return the loops left."""
    left: list[LoopRV] = []
    at = 0
    for group in joined(sch.get(block), axes):
        mine = loops[at : at + len(group)]
        at += len(group)
        left.append(sch.fuse(*mine) if len(mine) > 1 else mine[0])
    return left


def vectorize(sch: Schedule, block: SBlockRV, lanes: int) -> None:
    """Vectorize a block's innermost loop: all of a short one, else in vectors of ``lanes``, a rest peeled off."""
    loop = sch.get_loops(block)[-1]
    extent = int(sch.get(loop).extent)
    bounded = has_conditions(sch.get(block).body)
    width = min(lanes, extent) if bounded else vector_of(extent, lanes)
    if width < extent:
        outer, loop = sch.split(loop, [None, width])
        if extent % width or bounded:
            peel(sch, outer)
    if width > 1:
        sch.vectorize(loop)


def vector_of(extent: int, lanes: int) -> int:
    """Return how many elements of a loop to compute at a time: LLVM takes wide and odd vectors apart well."""
    if extent % lanes == 0:
        return lanes
    if extent <= MOST_VECTORS * lanes:
        return extent
    fitting = range(MOST_VECTORS * lanes // LEAST_LANES * LEAST_LANES, 0, -LEAST_LANES)
    return next((w for w in fitting if extent % w == 0), lanes)


@dataclass(frozen=True)
class ElementwisePlan:
    """Chosen values of the decisions.

    Attributes
    ----------
    threads : int
        Cores that share the elements.
    lanes : int
        Elements that are computed at a time.
    tile : int
        Side of the squares in which a transposed tensor is read.
    """

    threads: int
    lanes: int
    tile: int


def space(info: BlockInfo, hardware: Hardware) -> SearchSpace:
    """Return the decisions of an elementwise function with analytic defaults.

    Parameters
    ----------
    info : BlockInfo
        What :func:`describe` found.
    hardware : Hardware
        The machine.
    """
    threads = tuple(sorted({1, max(1, info.threads)}))
    gain = _cycles(info, hardware) * (1 - 1 / threads[-1])
    return SearchSpace(
        (
            Decision("threads", threads, threads[-1] if gain > hardware.pipeline.fork else 1, "cores that share"),
            Decision("vectors", (1, 2, 4), 1, "vector registers of the output at a time"),
            Decision("tile", (4, 8, 16, 32), 16, "side of the squares in which a transposed tensor is read"),
        )
    )


def plan_of(choose: Choose, info: BlockInfo, hardware: Hardware) -> ElementwisePlan:
    """Ask for every decision."""
    return ElementwisePlan(choose("threads"), choose("vectors") * lanes_of(info, hardware), choose("tile"))


def lanes_of(info: BlockInfo, hardware: Hardware) -> int:
    """Elements of a vector register, of the widest type that a function computes with."""
    widest = max(_bits(dtype) for dtype in (info.a_dtype, info.b_dtype, info.acc_dtype, info.out_dtype))
    return max(LEAST_LANES // 2, hardware.vector_bits // max(32, widest))


def _bits(dtype: str) -> int:
    return int(DataType(dtype).bits)


def _cycles(info: BlockInfo, hardware: Hardware) -> float:
    """Cycles of one core: what is read and written, from the cache that it fits in."""
    moved = info.m * (info.k + 1) * _bits(info.out_dtype) / 8
    rates = hardware.pipeline.stream
    level = next((n for n in (1, 2, 3) if moved <= hardware.cache(n).size), 4)
    return moved / rates[level - 1]


def estimate(values: Values, info: BlockInfo, hardware: Hardware) -> float:
    """Return cycles: traffic of a share, and the fork."""
    threads = int(values["threads"])
    return _cycles(info, hardware) / threads + (hardware.pipeline.fork if threads > 1 else 0)


def outputs(sch: Schedule) -> list[SBlockRV]:
    """The blocks of a normalized function: each writes an output, and has loops unless that is a single number."""
    return [block for block in root_blocks(sch) if sch.get_loops(block)]


def is_bounded(sch: Schedule, block: SBlockRV) -> bool:
    """Tell whether a block tests where it is: paddings, concatenations."""
    return has_conditions(sch.get(block).body)


@dataclass(frozen=True)
class Joined:
    """The loops of a block that has had what is side by side joined.

    Attributes
    ----------
    loops : tuple of LoopRV
        Outermost first; the output is stored along the last.
    across : int or None
        Which other loop a tensor that is read is stored along; None where there is none: nothing is transposed.
    """

    loops: tuple[LoopRV, ...]
    across: int | None


def join(sch: Schedule, block: SBlockRV) -> Joined:
    """Fuse neighbouring loops whose axes every tensor of the block has side by side."""
    axes = [v.var for v in sch.get(block).iter_vars]
    across = _read_across(sch.get(block), joined(sch.get(block), axes))
    return Joined(tuple(fuse_joined(sch, block, sch.get_loops(block), axes)), across)


def _read_across(block: Any, groups: list[list[tirx.Var]]) -> int | None:
    """Return the group, other than the innermost, that a tensor is stored along; None where there is none."""
    for load in loads_of(block.body.value):
        if not load.indices:
            continue
        last = load.indices[-1]
        if not any(uses(last, v) for v in groups[-1]) and any(uses(i, v) for i in load.indices for v in groups[-1]):
            return next((n for n, g in enumerate(groups[:-1]) if any(uses(last, v) for v in g)), None)
    return None
