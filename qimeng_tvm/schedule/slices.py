"""Functions that belong together, computed a slice at a time: what one makes of a slice, the next one reads at once.

Between two functions of a model lie whole tensors, and where these do not fit into a core's cache they go to memory and
back. Attention's scores are such tensors; those of one head do fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx
from tvm.ir import Range
from tvm.s_tir import MatchBufferRegion, SBlock, SBlockRealize
from tvm_ffi import structural_map, structural_walk

from qimeng_tvm.schedule.analysis import root_blocks
from qimeng_tvm.schedule.elementwise import loads_of

_TRUE = tirx.const(True, "bool")


@dataclass(frozen=True)
class Cut:
    """An axis along which a function is taken apart.

    Attributes
    ----------
    extent : int
        Of the axis.
    width : int
        Of a slice; it divides the extent.
    places : mapping of int to int
        By the place of a parameter, which of its axes it is; parameters that are read whole are left out.
    """

    extent: int
    width: int
    places: Mapping[int, int]

    @property
    def slices(self) -> int:
        """How many there are."""
        return self.extent // self.width


def cut(func: tirx.PrimFunc, param: int, axis: int, width: int) -> tuple[tirx.PrimFunc, Cut] | None:
    """Return the function of one slice along an axis of a parameter, and where the slices lie.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        Before any schedule.
    param, axis : int
        A parameter's place, and an axis of it.
    width : int
        Of a slice, a divisor of the axis' extent.

    Returns
    -------
    PrimFunc, Cut, or None
        None where a slice cannot be computed by itself: something is reduced over the axis, or asks where it is.
    """
    sch = s_tir.Schedule(func)
    blocks = [sch.get(b) for b in root_blocks(sch)]
    nests = [[sch.get(loop) for loop in sch.get_loops(b)] for b in root_blocks(sch)]
    extent = int(func.params[param].shape[axis])
    axes = _spread(blocks, {func.params[param]: axis})
    if axes is None or any(int(buffer.shape[at]) != extent for buffer, at in axes.items()):
        return None
    names: list[tirx.Var] = []
    for block, loops in zip(blocks, nests, strict=True):
        var = _axis_of(block, axes)
        if var is None:
            return None
        values = dict(zip([v.var for v in block.iter_vars], loops[-1].body.iter_values, strict=True))
        loop = next((x for x in loops if x.loop_var.same_as(values[var])), None)
        if loop is None or int(loop.extent) != extent or not _is_plain(block, var, axes):
            return None
        names += [var, loop.loop_var]
    buffers = {buffer: _narrow(buffer, at, width) for buffer, at in axes.items()}
    body = _narrowed(func.body, names, width)
    body = structural_map(body, (tirx.Var, lambda v: buffers.get(v, v)))
    params = [buffers.get(p, p) for p in func.params]
    places = {n: axes[p] for n, p in enumerate(func.params) if p in axes}
    sliced = tirx.PrimFunc(params, body, func.ret_type, func.attrs).without_attr("layout_free_buffers")
    return sliced, Cut(extent, width, places)


def _spread(blocks: Sequence[Any], seed: dict[Any, int]) -> dict[Any, int] | None:
    """Follow an axis through all blocks; None where two places of one tensor would be it."""
    axes, before = dict(seed), 0
    while len(axes) > before:
        before = len(axes)
        for block in blocks:
            var = _axis_of(block, axes)
            for buffer, indices in touched(block) if var is not None else ():
                at = [n for n, i in enumerate(indices) if i.same_as(var)]
                if len(at) > 1 or (at and axes.setdefault(buffer, at[0]) != at[0]):
                    return None
    return axes


def statements_of(block: Any) -> list[Any]:
    """What a block does, and what it begins a reduction with."""
    return [stmt for stmt in (block.body, block.init) if stmt is not None]


def touched(block: Any) -> list[tuple[Any, Sequence[Any]]]:
    """Every tensor that a block writes or reads, with the indices."""
    stores: list[tirx.BufferStore] = []
    for stmt in statements_of(block):
        structural_walk(stmt, (tirx.BufferStore, stores.append))
    loads = [load for stmt in statements_of(block) for load in loads_of(stmt)]
    return [*((s.buffer, s.indices) for s in stores), *((x.source, x.indices) for x in loads)]


def _axis_of(block: Any, axes: Mapping[Any, int]) -> tirx.Var | None:
    """Return the variable of a block that runs over the axis, as far as that is known."""
    for buffer, indices in touched(block):
        index = indices[axes[buffer]] if buffer in axes else None
        if isinstance(index, tirx.Var):
            return index
    return None


def _is_plain(block: Any, var: tirx.Var, axes: Mapping[Any, int]) -> bool:
    """Tell whether a variable is no more than the place on the axis, and nothing is summed over it."""
    kinds = {v.var: v.iter_type for v in block.iter_vars}
    used: list[bool] = []
    for stmt in statements_of(block):
        structural_walk(stmt, (tirx.Var, lambda v: used.append(bool(v.same_as(var)))))
    places = [indices[axes[buffer]] for buffer, indices in touched(block) if buffer in axes]
    placed = all(place.same_as(var) for place in places)
    return placed and kinds[var] == tirx.IterVar.DataPar and sum(used) == len(places)


def _narrow(buffer: Any, axis: int, width: int) -> Any:
    shape = list(buffer.shape)
    shape[axis] = tirx.IntImm(str(shape[axis].ty.dtype), width)
    return tirx.decl_buffer(shape, str(buffer.dtype), buffer.name, scope=buffer.scope())


def _narrowed(body: Any, names: Sequence[tirx.Var], width: int) -> Any:
    """Give loops and axes of these variables the extent of a slice."""

    def count(like: Any) -> Any:
        return tirx.IntImm(str(like.ty.dtype), width)

    def loop(stmt: tirx.For) -> tirx.For:
        if not any(stmt.loop_var.same_as(v) for v in names):
            return stmt
        return tirx.For(stmt.loop_var, stmt.min, count(stmt.extent), stmt.kind, stmt.body)

    def block(stmt: SBlock) -> SBlock:
        axes = [
            tirx.IterVar(Range(v.dom.min, count(v.dom.extent)), v.var, v.iter_type)
            if any(v.var.same_as(n) for n in names)
            else v
            for v in stmt.iter_vars
        ]
        return SBlock(
            axes, stmt.reads, stmt.writes, stmt.name_hint, stmt.body, stmt.init, stmt.alloc_buffers, stmt.match_buffers,
            stmt.annotations,
        )  # fmt: skip

    return structural_map(body, [(tirx.For, loop), (SBlock, block)])


@dataclass(frozen=True)
class Together:
    """Functions that are computed a slice at a time, one after the other.

    Attributes
    ----------
    tensors : mapping of str to Buffer
        What goes in and, last, what comes out. What parts name besides is kept between them, a slice at a time.
    cuts : tuple of (int, mapping)
        How many slices along an axis, outermost first, and which axis of the tensors that is.
    parts : tuple of PrimFunc
        Of one slice each, in order.
    arguments : tuple of tuple of str
        By part and parameter, the name of the tensor.
    """

    tensors: Mapping[str, Any]
    cuts: tuple[tuple[int, Mapping[str, int]], ...]
    parts: tuple[tirx.PrimFunc, ...]
    arguments: tuple[tuple[str, ...], ...]

    @property
    def slices(self) -> int:
        """How many there are."""
        return math.prod(count for count, _ in self.cuts)


def in_turns(together: Together, parts: Sequence[tirx.PrimFunc], *, parallel: bool) -> tirx.PrimFunc:
    """Return the function that runs all parts on a slice before it comes to the next one.

    Parameters
    ----------
    together : Together
        What belongs together.
    parts : sequence of PrimFunc
        The same parts, scheduled.
    parallel : bool
        Whether cores share the slices.
    """
    axis, loop = tirx.Var("v_slice", "int32"), tirx.Var("slice", "int32")
    params = {
        name: tirx.decl_buffer([_int(x) for x in whole.shape], str(whole.dtype), name)
        for name, whole in together.tensors.items()
    }
    named = list(zip(together.arguments, parts, strict=True))
    shapes = {name: p for names, part in named for name, p in zip(names, part.params, strict=True)}
    views = {n: _view(params[n], shapes[n], _starts(n, together.cuts, shapes[n], axis)) for n in params}
    kept = {n: tirx.decl_buffer(list(p.shape), str(p.dtype), n) for n, p in shapes.items() if n not in params}
    given = {**{name: view.buffer for name, view in views.items()}, **kept}
    bodies, allocated = [], list(kept.values())
    for names, part in named:
        renamed = {p: given[name] for name, p in zip(names, part.params, strict=True)}
        body, own = renamed_root(part.body.block, renamed)
        bodies.append(body)
        allocated += own
    *inputs, output = [view.source for view in views.values()]
    axes = [tirx.IterVar(Range(0, together.slices), axis, tirx.IterVar.DataPar)]
    body = tirx.SeqStmt(bodies)
    block = SBlock(axes, inputs, [output], "slices", body, None, allocated, list(views.values()))
    kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
    nest = tirx.For(loop, _int(0), _int(together.slices), kind, SBlockRealize([loop], _TRUE, block))
    root = SBlock([], [], [], "root", nest)
    whole = tirx.PrimFunc(list(params.values()), SBlockRealize([], _TRUE, root))
    return whole.with_attrs({"tirx.noalias": True, "s_tir": True, "tirx.is_scheduled": True})


def renamed_root(root: SBlock, buffers: Mapping[Any, Any]) -> tuple[Any, list[Any]]:
    """Return what a part does, and what it allocates, with other buffers in place of its parameters."""
    body, own = structural_map([root.body, root.alloc_buffers], (tirx.Var, lambda v: buffers.get(v, v)))
    return body, list(own)


def _starts(name: str, cuts: Sequence[tuple[int, Mapping[str, int]]], like: Any, slice_: tirx.Var) -> dict[int, Any]:
    """Return where a tensor's slice begins, by axis."""
    starts, inner = {}, 1
    for count, axes in reversed(cuts):
        if name in axes:
            at = axes[name]
            starts[at] = tirx.floormod(tirx.floordiv(slice_, inner), count) * int(like.shape[at])
        inner *= count
    return starts


def _view(whole: Any, like: Any, starts: Mapping[int, Any]) -> MatchBufferRegion:
    ranges = [Range.from_min_extent(starts.get(n, _int(0)), _int(x)) for n, x in enumerate(like.shape)]
    strides = [tirx.Var(f"{whole.name}_{n}", "int32") for n in range(len(ranges))]
    view = tirx.decl_buffer(
        [_int(x) for x in like.shape], str(whole.dtype), whole.name, strides=strides, offset_factor=1
    )
    return MatchBufferRegion(view, tirx.BufferRegion(whole, ranges))


def _int(value: Any) -> tirx.IntImm:
    return tirx.IntImm("int32", int(value))
