"""Read functions that slide a window over images, each channel by itself: depthwise convolutions and poolings."""

from __future__ import annotations

from typing import Any

from tvm import s_tir, sym, tirx
from tvm.ir import TensorLoad
from tvm.s_tir.schedule import SBlockRV

from qimeng_tvm.schedule.analysis import block_name, blocks_behind, is_layout_free, is_reduction, root_blocks
from qimeng_tvm.schedule.contract import BlockInfo, Window

DEPTHWISE, POOL = "depthwise", "pool"
#: Axes of an image: N, H, W, C.
_AXES = 4


def normalize_depthwise(sch: s_tir.Schedule) -> SBlockRV | None:
    """Find a depthwise convolution; see :func:`_normalize`."""
    return _normalize(sch, DEPTHWISE)


def normalize_pool(sch: s_tir.Schedule) -> SBlockRV | None:
    """Find a pooling; see :func:`_normalize`."""
    return _normalize(sch, POOL)


def describe(sch: s_tir.Schedule, anchor: SBlockRV, func: tirx.PrimFunc, threads: int) -> BlockInfo:
    """Return what a rule needs to know of a depthwise convolution or a pooling.

    Parameters
    ----------
    sch : tvm.s_tir.Schedule
        Of ``func``, normalized.
    anchor : SBlockRV
        What was found.
    func : tvm.tirx.PrimFunc
        The function before any step.
    threads : int
        Cores the operator may use.
    """
    block = sch.get(anchor)
    image, kernel = _operands(block)
    window, names = _window(block, image), [block_name(sch, b) for b in root_blocks(sch)]
    assert window is not None  # _normalize() has looked
    at = names.index(block_name(sch, anchor))
    weights = image if kernel is None else kernel
    return BlockInfo(
        name=names[at],
        kind=POOL if kernel is None else DEPTHWISE,
        batch=int(block.iter_vars[0].dom.extent),
        m=window.out[0] * window.out[1],
        n=1,
        k=window.kernel[0] * window.kernel[1],
        a_dtype=str(image.source.dtype),
        b_dtype=str(weights.source.dtype),
        acc_dtype=str(block.body.buffer.dtype),
        out_dtype=str(sch.get(root_blocks(sch)[-1]).writes[0].source.dtype),
        constant_b=kernel is not None and is_layout_free(func, kernel.source),
        producers=tuple(names[:at]),
        consumers=tuple(names[at + 1 :]),
        threads=threads,
        window=window,
    )


def border_of(sch: s_tir.Schedule, anchor: SBlockRV) -> SBlockRV | None:
    """The block that gives the image its border, None when it has none."""
    return next(iter(sch.get_producers(anchor)), None)


def _normalize(sch: s_tir.Schedule, kind: str) -> SBlockRV | None:
    """Inline what surrounds the anchor: an elementwise block behind it and the border before it are left.

    Returns the anchor, or None when the function is not of that kind.
    """
    reductions = [b for b in root_blocks(sch) if is_reduction(sch, b)]
    if len(reductions) != 1 or not _is_kind(sch.get(reductions[0]), kind):
        return None
    anchor = reductions[0]
    border = border_of(sch, anchor)
    for block in root_blocks(sch):
        name = block_name(sch, block)
        if name == block_name(sch, anchor):
            break
        if border is None or name != block_name(sch, border):
            sch.compute_inline(block)
    for block in blocks_behind(sch, anchor)[:-1]:
        sch.compute_inline(block)
    behind = blocks_behind(sch, anchor)
    return anchor if all(_is_alike(sch, block, anchor) for block in behind) else None


def _is_alike(sch: s_tir.Schedule, block: SBlockRV, anchor: SBlockRV) -> bool:
    """Tell whether a block computes what the anchor does pixel by pixel, in the same order."""
    own, others = (_spatial(sch.get(b)) for b in (block, anchor))
    stores = sch.get(block).body.indices
    if not len(stores) == len(own) == len(others) == _AXES:
        return False
    in_order = all(i.same_as(v.var) for i, v in zip(stores, own, strict=True))
    return in_order and all(int(v.dom.extent) == int(w.dom.extent) for v, w in zip(own, others, strict=True))


def _spatial(block: Any) -> list[Any]:
    return [v for v in block.iter_vars if v.iter_type != tirx.IterVar.CommReduce]


def _is_kind(block: Any, kind: str) -> bool:
    image, kernel = _operands(block)
    if image is None or (kernel is None) != (kind == POOL):
        return False
    return _window(block, image) is not None and (kernel is None or _reads_taps(block, kernel))


def _strip_casts(expr: Any) -> Any:
    while isinstance(expr, tirx.Cast):
        expr = expr.value
    return expr


def _operands(block: Any) -> tuple[Any, Any]:
    """Return the loads of the image and of the filters of a block; None for what it does not have."""
    store = block.body
    if not isinstance(store, tirx.BufferStore) or not isinstance(store.value, (tirx.Add, tirx.Max)):
        return None, None
    own, term = store.value.a, _strip_casts(store.value.b)
    if not isinstance(own, TensorLoad) or not own.source.same_as(store.buffer):
        return None, None
    if isinstance(term, tirx.Mul) and isinstance(store.value, tirx.Add):
        image, kernel = _strip_casts(term.a), _strip_casts(term.b)
        both = isinstance(image, TensorLoad) and isinstance(kernel, TensorLoad)
        return (image, kernel) if both else (None, None)
    return (term, None) if isinstance(term, TensorLoad) else (None, None)


def _window(block: Any, image: Any) -> Window | None:
    """Return the window that an image is read through; None when it is another access."""
    spatial = _spatial(block)
    taps = [v for v in block.iter_vars if v.iter_type == tirx.IterVar.CommReduce]
    if len(spatial) != _AXES or len(taps) != 2 or len(image.indices) != _AXES:
        return None
    extents = [v.dom.extent for v in block.iter_vars]
    ends = (image.indices[0].same_as(spatial[0].var), image.indices[3].same_as(spatial[3].var))
    if not all(ends) or not all(isinstance(x, tirx.IntImm) for x in extents):
        return None
    steps = []
    for axis in (1, 2):
        names = [spatial[axis].var, taps[axis - 1].var]
        found = sym.detect_linear_equation(image.indices[axis], names)
        if len(found) != len(names) + 1 or not all(isinstance(x, tirx.IntImm) for x in found):
            return None
        # Of an extent of 1 nothing is left in the index.
        steps.append([max(1, int(x)) for x in found[:2]])
    return Window(
        out=(int(spatial[1].dom.extent), int(spatial[2].dom.extent)),
        kernel=(int(taps[0].dom.extent), int(taps[1].dom.extent)),
        stride=(steps[0][0], steps[1][0]),
        dilation=(steps[0][1], steps[1][1]),
        groups=int(spatial[3].dom.extent),
    )


def _reads_taps(block: Any, kernel: Any) -> bool:
    """Tell whether filters are read as (row, column, 0, channel)."""
    channel = block.iter_vars[_AXES - 1].var
    taps = [v.var for v in block.iter_vars if v.iter_type == tirx.IterVar.CommReduce]
    moving = [i for i in kernel.indices if not isinstance(i, tirx.IntImm)]
    wanted = [*taps, channel]
    return len(moving) == len(wanted) and all(i.same_as(v) for i, v in zip(moving, wanted, strict=True))
