# author: offline-exchange, prompt rule@2, 1 round, the answer of round 1
# checked on: AMD EPYC (znver5), 2026-11-26: 36 operators right
# speed: 1.00 of the reference
"""3x3 convolutions of stride 1 by Winograd's method: 16 matrix products whose operands stay in a core's caches.

The loops over blocks are made of the loops that transform products back. Pixels (by block, or whole before the nest)
and products are moved into them and tiled there: a register tile is summed over all channels by one micro-kernel,
and a tile of 2x2 pixels is transformed back and gets its epilogue while it is in registers. Transforms are unrolled
over points and places, and vectorized over channels and filters; constant filters are packed at compile time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily, families_for
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, packing, steps
from qimeng_tvm.schedule.winograd import Around, around
from qimeng_tvm.schedule.winograd_blocking import WinogradPlan, winograd_cycles, winograd_plan, winograd_space
from qimeng_tvm.schedule.winograd_form import TILE


@dataclass
class Nest:
    """Loops that other blocks are moved under."""

    pixels_at: LoopRV
    inner: LoopRV
    vector: LoopRV


class WinogradConvolution(ScheduleRule):
    """F(2x2, 3x3): pixels transformed, 16 products, transformed back, block by block."""

    name = "cpu.winograd"
    version = 2

    def families(self, block: BlockInfo, hardware: Hardware) -> tuple[IntrinFamily, ...]:
        """Families that take one channel at a time."""
        dtypes = (block.a_dtype, block.b_dtype, block.acc_dtype)
        found = families_for(hardware.isa, dtypes, hardware.features)
        return tuple(family for family in found if family.k_pack == 1)

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Winograd's products whose filters are whole vectors."""
        if block.kind != "winograd":
            return False
        return any(block.n % family.lanes == 0 for family in self.families(block, hardware))

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions, their defaults by the working-set model."""
        return winograd_space(block, hardware, self.families(block, hardware))

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Cycles of the whole convolution."""
        plan = winograd_plan(info, self.families(info, hardware), lambda name: values[name])
        return winograd_cycles(info, plan, hardware)

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Block, place, tile, tensorize."""
        parts = around(sch, block)
        plan = winograd_plan(info, self.families(info, hardware), choose)
        self.pack_filters(sch, block, plan, info)
        written = sch.cache_write(block, 0, "local")
        nest = self.make_blocks(sch, parts, plan)
        self.place_epilogue(sch, parts, nest, plan)
        self.place_products(sch, block, written, nest)
        self.place_pixels(sch, parts, nest, plan)
        self.transform_pixels(sch, parts, plan)
        self.make_border(sch, parts, plan)
        loop = self.tile_registers(sch, block, written, plan)
        self.call_micro_kernel(sch, block, loop, plan)

    def pack_filters(self, sch: Schedule, block: SBlockRV, plan: WinogradPlan, info: BlockInfo) -> None:
        """Give the filters panels as wide as a register tile."""
        nr = plan.nr

        def panels(p: Any, k: Any, f: Any) -> list[Any]:
            """Filters of a panel lie side by side, channel after channel."""
            return [p, f // nr, k, f % nr]

        copy = sch.cache_read(block, 1, "global")
        sch.transform_layout(block, ("read", 1), panels)
        if info.constant_b:
            sch.annotate(copy, steps.PREPACK, True)
        else:
            steps.vectorize_inner(sch, copy, plan.family.lanes)

    def make_blocks(self, sch: Schedule, parts: Around, plan: WinogradPlan) -> Nest:
        """Make the loops over blocks of those that transform products back, and unroll that transform."""
        n, y, x, f = sch.get_loops(parts.back)[-4:]
        yb, yt, r = sch.split(y, [plan.row_blocks, plan.rows, TILE])
        xt, q = sch.split(x, [None, TILE])
        fb, fv, lane = sch.split(f, [plan.filter_blocks, None, plan.family.lanes])
        blocks = (n, yb, fb) if plan.order == "m" else (fb, n, yb)
        sch.reorder(*blocks, yt, xt, fv, r, q, lane)
        pixels_at, inner = blocks[1], blocks[2]
        if plan.threads > 1 and plan.copy == "whole":
            inner = sch.fuse(*blocks)
            pixels_at = inner
            sch.parallel(inner)
        elif plan.threads > 1:
            # Filters are not shared out: a block's pixels belong to one core, which makes them once for all filters.
            pixels_at = sch.fuse(n, yb)
            inner = fb if plan.order == "m" else pixels_at
            sch.parallel(pixels_at)
        sch.unroll(r)
        sch.unroll(q)
        sch.vectorize(lane)
        return Nest(pixels_at, inner, fv)

    def place_epilogue(self, sch: Schedule, parts: Around, nest: Nest, plan: WinogradPlan) -> None:
        """Apply the epilogue to 2x2 pixels of a vector of filters in registers."""
        sch.reverse_compute_at(parts.out, nest.vector, preserve_unit_loops=True)
        sch.set_scope(parts.back, 0, "local")
        steps.vectorize_inner(sch, parts.out, plan.family.lanes, unroll=3)

    def place_products(self, sch: Schedule, block: SBlockRV, written: SBlockRV, nest: Nest) -> None:
        """Make a block's products right before they are transformed back."""
        sch.compute_at(written, nest.inner, preserve_unit_loops=True)
        sch.compute_at(block, nest.inner, preserve_unit_loops=True)

    def place_pixels(self, sch: Schedule, parts: Around, nest: Nest, plan: WinogradPlan) -> None:
        """Make a block's pixels where its products need them, or leave all of them before the nest."""
        if plan.copy == "block":
            sch.compute_at(parts.pixels, nest.pixels_at, preserve_unit_loops=True)
            sch.compute_at(parts.pad, nest.pixels_at, preserve_unit_loops=True)

    def transform_pixels(self, sch: Schedule, parts: Around, plan: WinogradPlan) -> None:
        """Make the 16 points of a vector of channels from pixels that are read once."""
        p, n, y, x, c = sch.get_loops(parts.pixels)[-5:]
        co, lane = sch.split(c, [None, plan.pixel_lanes])
        sch.reorder(n, y, x, co, p, lane)
        if plan.copy == "whole" and plan.threads > 1:
            sch.parallel(sch.fuse(n, y))
        sch.unroll(p)
        sch.vectorize(lane)

    def make_border(self, sch: Schedule, parts: Around, plan: WinogradPlan) -> None:
        """Copy pixels by vectors; only the image's edge checks bounds."""
        image, row, column = sch.get_loops(parts.pad)[-4:-1]
        steps.vectorize_inner(sch, parts.pad, plan.pixel_lanes)
        if plan.copy == "whole" and plan.threads > 1:
            sch.parallel(sch.fuse(image, row))
        else:
            packing.peel(sch, row)
        packing.peel(sch, column)

    def tile_registers(self, sch: Schedule, block: SBlockRV, written: SBlockRV, plan: WinogradPlan) -> LoopRV:
        """Tile a block's products; return the loop that the micro-kernel replaces."""
        p, n, y, x, f, k = sch.get_loops(block)[-6:]
        xt, i = sch.split(x, [plan.row_tiles, plan.mr])
        ft, j = sch.split(f, [plan.panels, plan.nr])
        tiles = (ft, y, xt) if plan.inner_order == "n" else (y, xt, ft)
        sch.reorder(p, *tiles, i, j, k)
        sch.reverse_compute_at(written, tiles[2], preserve_unit_loops=True)
        steps.vectorize_inner(sch, written, plan.family.lanes, unroll=2)
        # A tile of one row has no loop over rows that could be replaced.
        return i if plan.mr > 1 else j

    def call_micro_kernel(self, sch: Schedule, block: SBlockRV, loop: LoopRV, plan: WinogradPlan) -> None:
        """Start from zero in registers, then sum over all channels in one call."""
        zero = sch.decompose_reduction(block, loop)
        steps.vectorize_inner(sch, zero, plan.family.lanes, unroll=2)
        steps.tensorize(sch, loop, plan.intrin_name())
