"""Read a fused function: which block is the anchor contraction, and what surrounds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx
from tvm.ir import TensorLoad
from tvm.s_tir.schedule import SBlockRV

from qimeng_tvm.schedule.contract import BlockInfo

_REDUCE = tirx.IterVar.CommReduce
#: Letters of batch axes.
_BATCH = "bcdefgh"
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
        One of ``m``, ``n``, ``k`` for each dimension, another letter for a batch axis, ``1`` for a constant index.
    """

    buffer: Any
    read_index: int
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Contraction:
    """A block C[b.., m, n] += A[..] * B[..] taken apart.

    Attributes
    ----------
    extents : dict of str to int
        Of ``m``, ``n``, ``k`` and ``b``, all batch axes together.
    loops : tuple of str
        The letter of each of the block's loops.
    c_axes : tuple of str
        Letters of the axes of C, as in :class:`Operand`.
    """

    extents: dict[str, int]
    loops: tuple[str, ...]
    a: Operand
    b: Operand
    acc_dtype: str
    c_axes: tuple[str, ...]


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
    if isinstance(a, TensorLoad) and isinstance(b, TensorLoad) and not a.source.same_as(b.source):
        return a, b  # of one buffer with itself it is a sum of squares
    return None


def _static(expr: Any) -> int | None:
    return int(expr) if isinstance(expr, tirx.IntImm) else None


def _letters(c_vars: list[str], a_vars: set[str], b_vars: set[str]) -> dict[str, str]:
    """Return letters of the axes of C: m for the last that A alone has, n for the last that B alone has, batch else."""
    own = {"m": [x for x in c_vars if x not in b_vars], "n": [x for x in c_vars if x not in a_vars]}
    named = {axes[-1]: letter for letter, axes in own.items() if axes}
    batch = [x for x in c_vars if x not in named]
    return {**named, **dict(zip(batch, _BATCH, strict=False))}


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
    letters = _letters(list(c_vars), set(a_vars), set(b_vars))
    if [letters[x] for x in c_vars if letters[x] in ("m", "n")] == ["n", "m"]:
        return None  # its loops are not in the order that micro-kernels have
    names = {reduce[0].name: "k", **letters}
    found = {v.var.name: _static(v.dom.extent) for v in block.iter_vars}
    unnamed = [extent for name, extent in found.items() if name not in names]
    if None in found.values() or any(extent != 1 for extent in unnamed):
        return None
    if reduce[0].name not in a_vars or reduce[0].name not in b_vars:
        return None
    extents = {"b": 1, "m": 1, "n": 1, "k": 1}
    for name, letter in names.items():
        axis = letter if letter in extents else "b"
        extents[axis] *= int(found[name] or 0)

    def axes_of(access: Any) -> tuple[str, ...]:
        return tuple(names[i.name] if isinstance(i, tirx.Var) else "1" for i in access.indices)

    def operand(load: Any) -> Operand:
        index = next(i for i, region in enumerate(block.reads) if region.source.same_as(load.source))
        return Operand(load.source, index, axes_of(load))

    loops = tuple(names.get(v.var.name, "1") for v in block.iter_vars)
    a, b = operand(loads[0]), operand(loads[1])
    return Contraction(extents, loops, a, b, str(store.buffer.dtype), axes_of(store))


def root_blocks(sch: s_tir.Schedule) -> list[SBlockRV]:
    """The blocks directly below the function's root, in program order."""
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def block_name(sch: s_tir.Schedule, block: SBlockRV) -> str:
    """The block's name in the function."""
    return str(sch.get(block).name_hint)


def block_names(func: tirx.PrimFunc) -> list[str]:
    """Names of a function's blocks, in program order."""
    sch = s_tir.Schedule(func)
    return [block_name(sch, b) for b in root_blocks(sch)]


def is_reduction(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Tell whether any loop of the block is a reduction."""
    return any(v.iter_type == _REDUCE for v in sch.get(block).iter_vars)


def multiplies(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Tell whether a block sums products, of whatever form."""
    return is_reduction(sch, block) and _product(sch.get(block)) is not None


def blocks_behind(sch: s_tir.Schedule, anchor: SBlockRV) -> list[SBlockRV]:
    """The blocks after the anchor (its epilogue), in program order."""
    blocks = root_blocks(sch)
    names = [block_name(sch, b) for b in blocks]
    return blocks[names.index(block_name(sch, anchor)) + 1 :]


def normalize(sch: s_tir.Schedule) -> SBlockRV | None:
    """Inline what surrounds the anchor: producers into it, the epilogue chain into its last block.

    Afterwards the function has the anchor and at most one elementwise block behind it. A result whose batch axes lie
    inside a matrix is gathered in matrices first, so that a tile of it is one: the block behind the anchor puts them
    where they belong. Returns the anchor, or None when the function is not of that form.
    """
    anchor = find_anchor_through_producers(sch)
    if anchor is None:
        return None
    for block in blocks_behind(sch, anchor)[:-1]:
        sch.compute_inline(block)
    parts = contraction_of(sch.get(anchor))
    if parts is not None and not planes_inside(parts.c_axes):
        if not blocks_behind(sch, anchor):
            sch.cache_write(anchor, 0, "global")
        sch.transform_layout(anchor, ("write", 0), planes_map(parts.c_axes))
    return anchor


def planes_order(axes: tuple[str, ...]) -> list[int]:
    """Return the positions of axes with batch axes first, the rest as they come."""
    return sorted(range(len(axes)), key=lambda i: axes[i] in ("m", "n", "k"))


def planes_inside(axes: tuple[str, ...]) -> bool:
    """Tell whether the axes of the matrix come last, with nothing between them."""
    wide = tuple(x for x in axes if x != "1")
    return planes_order(wide) == list(range(len(wide)))


def index_map(rank: int, moved: Callable[..., list[Any]]) -> Any:
    """Return an index map of just so many parameters: transform_layout counts them."""
    names = ", ".join(f"i{n}" for n in range(rank))
    return eval(f"lambda {names}: moved({names})", {"moved": moved})


def planes_map(axes: tuple[str, ...]) -> Any:
    """Return the index map that puts batch axes first."""
    order = planes_order(axes)
    return index_map(len(axes), lambda *index: [index[i] for i in order])


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
    before = block_names(func)
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
        batch_a=any(x in _BATCH for x in parts.a.axes),
        batch_b=any(x in _BATCH for x in parts.b.axes),
        planes_a=planes_inside(parts.a.axes),
        planes_b=planes_inside(parts.b.axes),
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
