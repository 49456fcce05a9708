"""Read a fused function: which block is the anchor contraction, and what surrounds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx
from tvm.ir import TensorLoad
from tvm.s_tir.schedule import SBlockRV

from qimeng_tvm.schedule.contract import BlockInfo

_REDUCE = tirx.IterVar.CommReduce
#: Function attribute (Relax ``AttachAttrLayoutFreeBuffers``): parameters whose layout we may choose.
LAYOUT_FREE = "layout_free_buffers"


@dataclass(frozen=True)
class Operand:
    """How one operand of a contraction is indexed.

    Attributes
    ----------
    buffer : tvm.tirx.Buffer
        What is read.
    read_index : int
        Position among the block's reads.
    axes : tuple of str
        One of ``b``, ``m``, ``n``, ``k`` for each dimension.
    """

    buffer: Any
    read_index: int
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Contraction:
    """A block C[b.., m, n] += A[..] * B[..] taken apart."""

    extents: dict[str, int]
    loops: tuple[str, ...]
    a: Operand
    b: Operand
    acc_dtype: str


def _strip_casts(expr: Any) -> Any:
    while isinstance(expr, tirx.Cast):
        expr = expr.value
    return expr


def _product(block: Any) -> tuple[Any, Any] | None:
    """Return the two loads of ``C = C + a * b`` (casts looked through), or None."""
    store = block.body
    if not isinstance(store, tirx.BufferStore) or not isinstance(store.value, tirx.Add):
        return None
    left, right = store.value.a, _strip_casts(store.value.b)
    if not isinstance(left, TensorLoad) or not left.source.same_as(store.buffer):
        return None
    if not isinstance(right, tirx.Mul):
        return None
    a, b = _strip_casts(right.a), _strip_casts(right.b)
    if isinstance(a, TensorLoad) and isinstance(b, TensorLoad):
        return a, b
    return None


def _static(expr: Any) -> int | None:
    return int(expr) if isinstance(expr, tirx.IntImm) else None


def contraction_of(block: Any) -> Contraction | None:
    """Take a block apart as a (batched) matrix product, or return None when it is something else."""
    loads = _product(block)
    if loads is None:
        return None
    store = block.body
    reduce = [v.var for v in block.iter_vars if v.iter_type == _REDUCE]
    used = [[i for i in load.indices if not isinstance(i, tirx.IntImm)] for load in (*loads, store)]
    if len(reduce) != 1 or not all(isinstance(i, tirx.Var) for indices in used for i in indices):
        return None
    a_vars, b_vars, c_vars = ({v.name: v for v in indices} for indices in used)
    names: dict[str, str] = {reduce[0].name: "k"}
    for name in c_vars:
        names[name] = "b" if name in a_vars and name in b_vars else "m" if name in a_vars else "n"
    extents = {"b": 1, "m": 1, "n": 1, "k": 1}
    # A batch that only A carries is folded into no axis we can name: leave such blocks alone.
    roles = list(names.values())
    if any(roles.count(role) > 1 for role in "bmn"):
        return None
    found = {v.var.name: _static(v.dom.extent) for v in block.iter_vars}
    unnamed = [extent for name, extent in found.items() if name not in names]
    if None in found.values() or any(extent != 1 for extent in unnamed):
        return None
    if reduce[0].name not in a_vars or reduce[0].name not in b_vars:
        return None
    extents |= {names[name]: int(extent or 0) for name, extent in found.items() if name in names}

    def operand(load: Any) -> Operand:
        axes = tuple(names[i.name] if isinstance(i, tirx.Var) else "1" for i in load.indices)
        index = next(i for i, region in enumerate(block.reads) if region.source.same_as(load.source))
        return Operand(load.source, index, axes)

    loops = tuple(names.get(v.var.name, "1") for v in block.iter_vars)
    return Contraction(extents, loops, operand(loads[0]), operand(loads[1]), str(store.buffer.dtype))


def root_blocks(sch: s_tir.Schedule) -> list[SBlockRV]:
    """The blocks directly below the function's root, in program order."""
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def block_name(sch: s_tir.Schedule, block: SBlockRV) -> str:
    """The block's name in the function."""
    return str(sch.get(block).name_hint)


def is_reduction(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Tell whether any loop of the block is a reduction."""
    return any(v.iter_type == _REDUCE for v in sch.get(block).iter_vars)


def blocks_behind(sch: s_tir.Schedule, anchor: SBlockRV) -> list[SBlockRV]:
    """The blocks after the anchor (its epilogue), in program order."""
    blocks = root_blocks(sch)
    names = [block_name(sch, b) for b in blocks]
    return blocks[names.index(block_name(sch, anchor)) + 1 :]


def normalize(sch: s_tir.Schedule) -> SBlockRV | None:
    """Inline what surrounds the anchor: producers into it, the epilogue chain into its last block.

    Afterwards the function has the anchor and at most one elementwise block behind it.
    Returns the anchor, or None when the function is not of that form.
    """
    anchor = find_anchor_through_producers(sch)
    if anchor is None:
        return None
    for block in blocks_behind(sch, anchor)[:-1]:
        sch.compute_inline(block)
    return anchor


def find_anchor_through_producers(sch: s_tir.Schedule) -> SBlockRV | None:
    """Inline elementwise producers (transposes, casts) of the only reduction block; return it."""
    reductions = [b for b in root_blocks(sch) if is_reduction(sch, b)]
    if len(reductions) != 1:
        return None
    name = block_name(sch, reductions[0])
    for block in root_blocks(sch):
        if block_name(sch, block) == name:
            break
        sch.compute_inline(block)
    anchor = sch.get_sblock(name)
    return anchor if contraction_of(sch.get(anchor)) is not None else None


def describe(sch: s_tir.Schedule, anchor: SBlockRV, func: tirx.PrimFunc, threads: int) -> BlockInfo | None:
    """Return what a rule needs to know of a matrix product.

    Parameters
    ----------
    sch : tvm.s_tir.Schedule
        Of ``func``, normalized.
    anchor : SBlockRV
        What :func:`normalize` found.
    func : tvm.tirx.PrimFunc
        The function before any step.
    threads : int
        Cores the operator may use.
    """
    before = [block_name(own, b) for own in [s_tir.Schedule(func)] for b in root_blocks(own)]
    parts = contraction_of(sch.get(anchor))
    assert parts is not None  # normalize() has looked
    name = block_name(sch, anchor)
    at = before.index(name)
    out = sch.get(root_blocks(sch)[-1]).writes[0].source
    e = parts.extents
    return BlockInfo(
        name=name,
        kind="matmul",
        batch=e["b"],
        m=e["m"],
        n=e["n"],
        k=e["k"],
        a_dtype=str(parts.a.buffer.dtype),
        b_dtype=str(parts.b.buffer.dtype),
        acc_dtype=parts.acc_dtype,
        out_dtype=str(out.dtype),
        transpose_a=_order(parts.a.axes, "k", "m"),
        transpose_b=_order(parts.b.axes, "n", "k"),
        batch_a="b" in parts.a.axes,
        batch_b="b" in parts.b.axes,
        constant_b=is_layout_free(func, parts.b.buffer),
        producers=tuple(before[:at]),
        consumers=tuple(before[at + 1 :]),
        threads=threads,
    )


def is_layout_free(func: tirx.PrimFunc, buffer: tirx.Buffer) -> bool:
    """Tell whether a buffer is a parameter of ``func`` whose layout we may choose: it is packed at compile time."""
    free = {int(i) for i in (func.attrs or {}).get(LAYOUT_FREE, [])}
    return any(i in free and buffer.same_as(p) for i, p in enumerate(func.params))


def _order(axes: tuple[str, ...], first: str, second: str) -> bool:
    """Tell whether axis ``first`` is stored outside ``second``."""
    return first in axes and second in axes and axes.index(first) < axes.index(second)
