"""Read a convolution: the anchor is what :mod:`qimeng_tvm.relax.legalize.conv2d` makes of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from qimeng_tvm.schedule.analysis import (
    block_name,
    block_names,
    blocks_behind,
    is_layout_free,
    is_reduction,
    root_blocks,
)
from qimeng_tvm.schedule.contract import BlockInfo, Window

#: Annotation of the anchor: extents of the true convolution, in the order of :func:`told_window`.
WINDOW = "qimeng.conv2d"


@dataclass(frozen=True)
class Around:
    """The blocks before the anchor.

    Attributes
    ----------
    pad : SBlockRV or None
        None when the pixels need no border and are read in place.
    gather, filters : SBlockRV
        Of the anchor's operands.
    """

    pad: SBlockRV | None
    gather: SBlockRV
    filters: SBlockRV


def told_window(window: Window, channels: int, filters: int) -> list[int]:
    """Return what the anchor is annotated with; channels and filters are those of a group."""
    return [*window.out, *window.kernel, *window.stride, *window.dilation, window.groups, channels, filters]


def _window_of(told: Any) -> tuple[Window, int, int]:
    """Take an annotation apart: the window, channels and filters of a group."""
    *pairs, groups, channels, filters = (int(x) for x in told)
    out, kernel, stride, dilation = ((pairs[i], pairs[i + 1]) for i in range(0, 8, 2))
    return Window(out, kernel, stride, dilation, groups), channels, filters


def normalize(sch: s_tir.Schedule) -> SBlockRV | None:
    """Inline the epilogue chain into its last block; return the anchor, or None when there is none.

    Afterwards the function has the anchor, two or three blocks before it, and one elementwise block behind it.
    """
    reductions = [b for b in root_blocks(sch) if is_reduction(sch, b)]
    if len(reductions) != 1 or WINDOW not in sch.get(reductions[0]).annotations:
        return None
    anchor = reductions[0]
    for block in blocks_behind(sch, anchor)[:-1]:
        sch.compute_inline(block)
    return anchor


def around(sch: s_tir.Schedule, anchor: SBlockRV) -> Around:
    """Return the blocks before the anchor of a normalized function."""
    pixels, weights = (_maker(sch, anchor, sch.get(anchor).reads[i].source) for i in (0, 1))
    assert pixels is not None and weights is not None  # legalization makes both
    return Around(_maker(sch, pixels, sch.get(pixels).reads[0].source), pixels, weights)


def _maker(sch: s_tir.Schedule, block: SBlockRV, buffer: Any) -> SBlockRV | None:
    """Return the block that writes what another one reads."""
    return next((b for b in sch.get_producers(block) if sch.get(b).writes[0].source.same_as(buffer)), None)


def describe(sch: s_tir.Schedule, anchor: SBlockRV, func: tirx.PrimFunc, threads: int) -> BlockInfo | None:
    """Return what a rule needs to know of a convolution.

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
    name = block_name(sch, anchor)
    at = before.index(name)
    block, blocks = sch.get(anchor), around(sch, anchor)
    pixels = sch.get(blocks.pad or blocks.gather).reads[0].source
    weights = sch.get(blocks.filters).reads[0].source
    out = block.writes[0].source
    window, channels, filters = _window_of(block.annotations[WINDOW])
    return BlockInfo(
        name=name,
        kind="conv2d",
        batch=int(out.shape[0]),
        m=window.out[0] * window.out[1],
        n=filters,
        k=channels * window.kernel[0] * window.kernel[1],
        a_dtype=str(pixels.dtype),
        b_dtype=str(weights.dtype),
        acc_dtype=str(out.dtype),
        out_dtype=str(sch.get(root_blocks(sch)[-1]).writes[0].source.dtype),
        constant_b=is_layout_free(func, weights),
        producers=tuple(before[:at]),
        consumers=tuple(before[at + 1 :]),
        threads=threads,
        window=window,
    )
