"""Convolutions on CPUs as implicit matrix products: no matrix of patches is made.

A tile of pixels of one row by a panel of filters stays in registers over all taps of the window; each tap is a call of
the micro-kernel of matrix products on pixels where they lie. The epilogue is applied to the tile at hand. Pixels are
copied at most once, to give them their border, bring those a stride apart together, or, where a pixel has few channels,
gather what a row of the window reads. Constant filters are packed at compile time.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily, families_for
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, packing, steps
from qimeng_tvm.schedule.analysis import blocks_behind
from qimeng_tvm.schedule.conv_blocking import ConvPlan, conv_plan, conv_space, kernels_of
from qimeng_tvm.schedule.conv_estimate import conv_cycles
from qimeng_tvm.schedule.conv_form import form_of
from qimeng_tvm.schedule.convolution import around


class Conv2d(ScheduleRule):
    """Pixels x filters summed over the taps of a window, tile by tile in registers."""

    name = "cpu.conv2d"
    version = 1

    def families(self, block: BlockInfo, hardware: Hardware) -> tuple[IntrinFamily, ...]:
        """Families for the operand types whose tiles make up the result."""
        form = form_of(block)
        dtypes = (block.a_dtype, block.b_dtype, block.acc_dtype)
        found = families_for(hardware.isa, dtypes, hardware.features)
        return tuple(f for f in found if form.pack % f.k_pack == 0 and kernels_of(form, f))

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Convolutions that some micro-kernel computes."""
        return block.kind == "conv2d" and len(self.families(block, hardware)) > 0

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions of a convolution with analytic defaults."""
        return conv_space(block, hardware, self.families(block, hardware))

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Cycles by the model of caches and ports."""
        return conv_cycles(info, conv_plan(info, self.families(info, hardware), lambda name: values[name]), hardware)

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Copy, pack, tile, place, tensorize."""
        plan = conv_plan(info, self.families(info, hardware), choose)
        blocks = around(sch, block)
        out = blocks_behind(sch, block)[-1]

        pixels = self.copy_pixels(sch, block, blocks, plan)
        self.pack_filters(sch, block, blocks.filters, plan, info)
        outer, tile, taps, kernel = self.tile(sch, block, plan)

        sch.reverse_compute_at(out, tile, preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
        steps.vectorize_inner(sch, out, plan.family.lanes, unroll=2)
        if pixels is not None:
            self.place_pixels(sch, pixels, outer, plan)
        zero = sch.decompose_reduction(block, taps)
        steps.vectorize_inner(sch, zero, plan.family.lanes, unroll=2)
        steps.tensorize(sch, kernel, plan.intrin_name())

    def copy_pixels(self, sch: Schedule, block: SBlockRV, blocks: Any, plan: ConvPlan) -> SBlockRV | None:
        """Leave one copy of the pixels, or none; return it."""
        if plan.gather == "runs":
            if blocks.pad is not None:
                sch.compute_inline(blocks.pad)
            copy, c = blocks.gather, plan.form.c
            sch.transform_layout(block, ("read", 0), lambda n, g, y, x, s, k: (n, g, y, x, s * c + k))
        elif blocks.pad is not None:
            sch.compute_inline(blocks.gather)
            copy = blocks.pad
        elif plan.copy == "none":
            sch.compute_inline(blocks.gather)
            return None
        else:
            sch.compute_inline(blocks.gather)
            copy = sch.cache_read(block, 0, "global")
        if str(sch.get(copy).writes[0].source.dtype) != plan.family.storage[0]:
            sch.unsafe_set_dtype(copy, 0, plan.family.storage[0])
        return copy

    def pack_filters(self, sch: Schedule, block: SBlockRV, filters: SBlockRV, plan: ConvPlan, info: BlockInfo) -> None:
        """Give filters panels in the order of the taps, at compile time where they are constant."""
        c, nr, pack = plan.form.c, plan.nr, plan.family.k_pack
        if plan.family.storage[1] != info.b_dtype:
            sch.unsafe_set_dtype(filters, 0, plan.family.storage[1])

        def panels(r: Any, s: Any, g: Any, k: Any, f: Any) -> list[Any]:
            outer, depth = ([r], s * c + k) if plan.gather == "runs" else ([r, s], k)
            inner = [depth, f % nr] if pack == 1 else [depth // pack, f % nr, depth % pack]
            return [g, f // nr, *outer, *inner]

        sch.transform_layout(block, ("read", 1), panels)
        if info.constant_b:
            sch.annotate(filters, steps.PREPACK, True)
        else:
            r, s, g, k, f = sch.get_loops(filters)
            f, lane = sch.split(f, [None, nr])
            sch.reorder(g, f, r, s, k, lane)
            if plan.threads > 1:
                sch.parallel(sch.fuse(g, f))
            steps.vectorize_inner(sch, filters, plan.family.lanes)

    def tile(self, sch: Schedule, block: SBlockRV, plan: ConvPlan) -> tuple[LoopRV, LoopRV, LoopRV, LoopRV]:
        """Split and reorder the anchor's loops, share the blocks between the cores.

        Returns the loop over blocks that a copy belongs to, the innermost one over tiles, the outermost one over taps,
        and the one that the micro-kernel replaces.
        """
        if plan.gather == "runs":
            c = plan.form.c
            sch.transform_block_layout(block, lambda n, g, y, x, f, r, s, k: (n, g, y, x, f, r, s * c + k))
        n, g, y, x, f, *taps, k = sch.get_loops(block)
        yb, yt = sch.split(y, [plan.row_blocks, plan.rows])
        xt, i = sch.split(x, [plan.row_tiles, plan.mr])
        fb, ft, j = sch.split(f, [plan.filter_blocks, plan.panels, plan.nr])
        blocks = [fb, yb] if plan.order == "n" else [yb, fb]
        tiles = [ft, yt, xt] if plan.inner_order == "n" else [yt, xt, ft]
        sch.reorder(n, g, *blocks, *tiles, *taps, i, j, k)
        packing.peel(sch, xt, ft)
        outer = blocks[0]
        if plan.threads > 1:
            # A copied block belongs to one iteration of the outer loop: the inner one is not shared out.
            outer = sch.fuse(n, g, blocks[0]) if plan.copy == "block" else sch.fuse(n, g, *blocks)
            sch.parallel(outer)
        return outer, tiles[-1], taps[0], i if plan.mr > 1 else j

    def place_pixels(self, sch: Schedule, copy: SBlockRV, outer: LoopRV, plan: ConvPlan) -> None:
        """Copy pixels where their block is used or before all else, in vectors."""
        if plan.copy == "block":
            sch.compute_at(copy, outer, preserve_unit_loops=True)
        elif plan.threads > 1:
            sch.parallel(sch.fuse(*sch.get_loops(copy)[:3]))
        steps.vectorize_inner(sch, copy, plan.family.lanes)
