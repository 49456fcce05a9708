# author: offline-exchange, prompt rule@2, 1 round, the answer of round 1
# checked on: AMD EPYC (znver5), 2026-11-26: 45 operators right
# speed: 1.00 of the reference
"""Convolutions as implicit matrix products: pixels are multiplied where they lie, no matrix of patches is made.

A tile of pixels of a row by panels of filters stays in registers over all taps of the window, each tap (or row of
taps, where channels are few) being one call of the micro-kernel. Pixels are copied at most once, with their border;
constant filters are packed at compile time; the epilogue is applied to each tile as soon as it is complete.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily, families_for
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, packing, steps
from qimeng_tvm.schedule.analysis import blocks_behind
from qimeng_tvm.schedule.conv_blocking import ConvPlan, conv_plan, conv_space, kernels_of
from qimeng_tvm.schedule.conv_estimate import conv_cycles
from qimeng_tvm.schedule.conv_form import form_of
from qimeng_tvm.schedule.convolution import Around, around


@dataclass
class Nest:
    """Loops of the tiled anchor, each group outermost first."""

    images: tuple[LoopRV, ...]
    blocks: tuple[LoopRV, ...]
    tiles: tuple[LoopRV, ...]
    taps: tuple[LoopRV, ...]
    kernel: tuple[LoopRV, ...]


class Conv2d(ScheduleRule):
    """C[mr, nr] += A[mr, kc] B[kc, nr] for each tap of the window, C in registers."""

    name = "cpu.conv2d"
    version = 2

    def families(self, block: BlockInfo, hardware: Hardware) -> tuple[IntrinFamily, ...]:
        """Micro-kernel families that fit the rounded form of the convolution."""
        form = form_of(block)
        dtypes = (block.a_dtype, block.b_dtype, block.acc_dtype)
        found = families_for(hardware.isa, dtypes, hardware.features)
        return tuple(f for f in found if form.pack % f.k_pack == 0 and len(kernels_of(form, f)) > 0)

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Convolutions that some micro-kernel computes."""
        return block.kind == "conv2d" and len(self.families(block, hardware)) > 0

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions, with defaults from the working-set model."""
        return conv_space(block, hardware, self.families(block, hardware))

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Cycles of the whole convolution."""
        plan = conv_plan(info, self.families(info, hardware), lambda name: values[name])
        return conv_cycles(info, plan, hardware)

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Copy pixels once, pack filters, tile, share out, fuse the epilogue, tensorize."""
        plan = conv_plan(info, self.families(info, hardware), choose)
        blocks = around(sch, block)
        out = blocks_behind(sch, block)[-1]
        copy = self.keep_one_copy(sch, block, blocks, plan)
        self.pack_filters(sch, block, blocks.filters, plan, info)
        nest = self.tile_anchor(sch, block, plan)
        outer = self.share_blocks(sch, nest, plan)
        self.place_epilogue(sch, block, out, nest, plan)
        if copy is not None:
            self.place_copy(sch, copy, outer, plan)
        self.place_kernel(sch, block, nest, plan)

    def keep_one_copy(self, sch: Schedule, block: SBlockRV, blocks: Around, plan: ConvPlan) -> SBlockRV | None:
        """Inline what stands between the pixels and the anchor, but for one copy at most; return that."""
        if plan.gather == "runs":
            copy = self.gather_runs(sch, block, blocks, plan)
        else:
            sch.compute_inline(blocks.gather)
            if blocks.pad is not None:
                copy = blocks.pad
            elif plan.copy == "none":
                return None
            else:
                copy = sch.cache_read(block, 0, "global")
        stored = plan.family.storage[0]
        if str(sch.get(copy).writes[0].source.dtype) != stored:
            sch.unsafe_set_dtype(copy, 0, stored)
        return copy

    def gather_runs(self, sch: Schedule, block: SBlockRV, blocks: Around, plan: ConvPlan) -> SBlockRV:
        """Lay each row of a pixel's window out as one run."""
        c = plan.form.c
        if blocks.pad is not None:
            sch.compute_inline(blocks.pad)
        sch.transform_layout(block, ("read", 0), lambda n, g, y, x, s, k: (n, g, y, x, s * c + k))
        return blocks.gather

    def pack_filters(
        self, sch: Schedule, block: SBlockRV, filters: SBlockRV, plan: ConvPlan, info: BlockInfo
    ) -> None:
        """Lay the filters out in panels: at compile time where they are known, else before the convolution."""
        stored = plan.family.storage[1]
        if stored != info.b_dtype:
            sch.unsafe_set_dtype(filters, 0, stored)
        self.lay_out_panels(sch, block, plan)
        if info.constant_b:
            sch.annotate(filters, steps.PREPACK, True)
        else:
            self.pack_at_run_time(sch, filters, plan)

    def lay_out_panels(self, sch: Schedule, block: SBlockRV, plan: ConvPlan) -> None:
        """Panels of nr filters, in the order in which the micro-kernel reads them."""
        c, nr, pack = plan.form.c, plan.nr, plan.family.k_pack
        operand = ("read", 1)
        if plan.gather == "runs" and pack == 1:
            sch.transform_layout(block, operand, lambda r, s, g, k, f: [g, f // nr, r, s * c + k, f % nr])
        elif plan.gather == "runs":
            sch.transform_layout(
                block,
                operand,
                lambda r, s, g, k, f: [g, f // nr, r, (s * c + k) // pack, f % nr, (s * c + k) % pack],
            )
        elif pack == 1:
            sch.transform_layout(block, operand, lambda r, s, g, k, f: [g, f // nr, r, s, k, f % nr])
        else:
            sch.transform_layout(
                block, operand, lambda r, s, g, k, f: [g, f // nr, r, s, k // pack, f % nr, k % pack]
            )

    def pack_at_run_time(self, sch: Schedule, filters: SBlockRV, plan: ConvPlan) -> None:
        """Write panel after panel, the panels shared between the cores."""
        r, s, g, k, f = sch.get_loops(filters)
        panel, lane = sch.split(f, [None, plan.nr])
        sch.reorder(g, panel, r, s, k, lane)
        if plan.threads > 1:
            sch.parallel(sch.fuse(g, panel))
        steps.vectorize_inner(sch, filters, plan.family.lanes)

    def tile_anchor(self, sch: Schedule, block: SBlockRV, plan: ConvPlan) -> Nest:
        """Split rows, pixels and filters into blocks and tiles, and put the taps around the micro-kernel."""
        if plan.gather == "runs":
            c = plan.form.c
            sch.transform_block_layout(block, lambda n, g, y, x, f, r, s, k: (n, g, y, x, f, r, s * c + k))
        loops = sch.get_loops(block)
        n, g, y, x, f = loops[:5]
        taps = tuple(loops[5:-1])
        k = loops[-1]
        row_block, row = sch.split(y, [plan.row_blocks, plan.rows])
        row_tile, i = sch.split(x, [plan.row_tiles, plan.mr])
        filter_block, panel, j = sch.split(f, [plan.filter_blocks, plan.panels, plan.nr])
        blocks = (filter_block, row_block) if plan.order == "n" else (row_block, filter_block)
        tiles = (panel, row, row_tile) if plan.inner_order == "n" else (row, row_tile, panel)
        sch.reorder(n, g, *blocks, *tiles, *taps, i, j, k)
        packing.peel(sch, row_tile, panel)
        return Nest((n, g), blocks, tiles, taps, (i, j, k))

    def share_blocks(self, sch: Schedule, nest: Nest, plan: ConvPlan) -> LoopRV:
        """Share blocks between the cores; return the loop that a copied block of pixels belongs to."""
        if plan.threads == 1:
            return nest.blocks[0]
        shared = nest.blocks[:1] if plan.copy == "block" else nest.blocks
        outer = sch.fuse(*nest.images, *shared)
        sch.parallel(outer)
        return outer

    def place_epilogue(self, sch: Schedule, block: SBlockRV, out: SBlockRV, nest: Nest, plan: ConvPlan) -> None:
        """Apply the epilogue to each tile while it is in registers."""
        sch.reverse_compute_at(out, nest.tiles[-1], preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
        steps.vectorize_inner(sch, out, plan.family.lanes, unroll=2)

    def place_copy(self, sch: Schedule, copy: SBlockRV, outer: LoopRV, plan: ConvPlan) -> None:
        """Copy pixels block by block in the outer loop, or all of them before."""
        if plan.copy == "block":
            sch.compute_at(copy, outer, preserve_unit_loops=True)
        elif plan.threads > 1:
            sch.parallel(sch.fuse(*sch.get_loops(copy)[:3]))
        steps.vectorize_inner(sch, copy, plan.family.lanes)

    def place_kernel(self, sch: Schedule, block: SBlockRV, nest: Nest, plan: ConvPlan) -> None:
        """Set the tile to zero before its taps, and hand each tap to the micro-kernel."""
        zero = sch.decompose_reduction(block, nest.taps[0])
        steps.vectorize_inner(sch, zero, plan.family.lanes, unroll=2)
        # A tile of one pixel has no loop over pixels that could be replaced.
        tile = nest.kernel[0] if plan.mr > 1 else nest.kernel[1]
        steps.tensorize(sch, tile, plan.intrin_name())
