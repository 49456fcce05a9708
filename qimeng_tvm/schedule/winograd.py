"""Read a convolution by Winograd's method: the anchor is what :mod:`qimeng_tvm.relax.winograd` makes of one."""

from __future__ import annotations

from dataclasses import dataclass

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
from qimeng_tvm.schedule.winograd_form import TAPS, WinogradForm

#: Annotation of the anchor: see :func:`~qimeng_tvm.schedule.winograd_form.told_form`.
WINOGRAD = "qimeng.winograd"


@dataclass(frozen=True)
class Around:
    """The blocks around the anchor: the border of pixels, their transform, that of products, and the epilogue."""

    pad: SBlockRV
    pixels: SBlockRV
    back: SBlockRV
    out: SBlockRV


def normalize(sch: s_tir.Schedule) -> SBlockRV | None:
    """Inline the epilogue into its last block; return the anchor, or None when there is none."""
    reductions = [b for b in root_blocks(sch) if is_reduction(sch, b)]
    if len(reductions) != 1 or WINOGRAD not in sch.get(reductions[0]).annotations:
        return None
    for block in blocks_behind(sch, reductions[0])[1:-1]:
        sch.compute_inline(block)
    return reductions[0]


def around(sch: s_tir.Schedule, anchor: SBlockRV) -> Around:
    """Return the blocks around the anchor of a normalized function."""
    (pixels,) = sch.get_producers(anchor)
    (pad,) = sch.get_producers(pixels)
    back, out = blocks_behind(sch, anchor)
    return Around(pad, pixels, back, out)


def describe(sch: s_tir.Schedule, anchor: SBlockRV, func: tirx.PrimFunc, threads: int) -> BlockInfo | None:
    """Return what a rule needs to know: a batch of products, one for each point of a tile and image.

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
    block = sch.get(anchor)
    form = WinogradForm(*(int(x) for x in block.annotations[WINOGRAD]))
    pixels, weights = (read.source for read in block.reads)
    before, name = block_names(func), block_name(sch, anchor)
    at = before.index(name)
    return BlockInfo(
        name=name,
        kind="winograd",
        batch=form.points * form.batch,
        m=form.tile_rows * form.x,
        n=form.filters,
        k=form.channels,
        a_dtype=str(pixels.dtype),
        b_dtype=str(weights.dtype),
        acc_dtype=str(block.writes[0].source.dtype),
        out_dtype=str(sch.get(root_blocks(sch)[-1]).writes[0].source.dtype),
        constant_b=is_layout_free(func, weights),
        producers=tuple(before[:at]),
        consumers=tuple(before[at + 1 :]),
        threads=threads,
        window=Window((form.rows, form.columns), (TAPS, TAPS)),
    )
