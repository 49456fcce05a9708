"""3x3 convolutions on CPUs by Winograd's method: a product for each point of a tile, and a transform on each side.

A block of tiles (rows of them, by a number of filters) is computed for all points before it is transformed back, so
that products, and transformed pixels where they are made block by block, stay in the core's own caches. Within a block
each point is a packed matrix product in register tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily, families_for
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, packing, steps
from qimeng_tvm.schedule.winograd import around
from qimeng_tvm.schedule.winograd_blocking import WinogradPlan, winograd_cycles, winograd_plan, winograd_space
from qimeng_tvm.schedule.winograd_form import TILE


@dataclass
class Blocks:
    """The loops over blocks, which are those of the transform back."""

    pixels_at: LoopRV  # a block's pixels are made under it
    inner: LoopRV  # the innermost of them
    vector: LoopRV  # the loop over vectors of filters of a tile of pixels


class Winograd(ScheduleRule):
    """Products of transformed pixels and filters, block by block."""

    name = "cpu.winograd"
    version = 1

    def families(self, block: BlockInfo, hardware: Hardware) -> tuple[IntrinFamily, ...]:
        """Families for the operand types, of operands as they are stored."""
        dtypes = (block.a_dtype, block.b_dtype, block.acc_dtype)
        return tuple(f for f in families_for(hardware.isa, dtypes, hardware.features) if f.k_pack == 1)

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Winograd's products whose filters are whole vectors of some micro-kernel."""
        return block.kind == "winograd" and any(block.n % f.lanes == 0 for f in self.families(block, hardware))

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions with analytic defaults."""
        return winograd_space(block, hardware, self.families(block, hardware))

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Cycles by the model of caches and ports."""
        return winograd_cycles(info, winograd_plan(info, self.families(info, hardware), values.__getitem__), hardware)

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Pack, tile, place the transforms, tensorize."""
        plan = winograd_plan(info, self.families(info, hardware), choose)
        parts = around(sch, block)
        self.pack_filters(sch, block, plan, info)
        written = sch.cache_write(block, 0, "local")

        blocks = self.block(sch, parts.back, plan)
        self.place_out(sch, parts.back, parts.out, blocks, plan)
        sch.compute_at(written, blocks.inner, preserve_unit_loops=True)
        sch.compute_at(block, blocks.inner, preserve_unit_loops=True)
        self.place_pixels(sch, parts.pixels, parts.pad, blocks, plan)
        self.tile(sch, block, written, plan)

    def pack_filters(self, sch: Schedule, block: SBlockRV, plan: WinogradPlan, info: BlockInfo) -> None:
        """Give the filters of each point panels, at compile time where they are constant."""
        nr = plan.nr
        copy = sch.cache_read(block, 1, "global")
        sch.transform_layout(block, ("read", 1), lambda p, k, f: [p, f // nr, k, f % nr])
        if info.constant_b:
            sch.annotate(copy, steps.PREPACK, True)
        else:
            steps.vectorize_inner(sch, copy, plan.family.lanes)

    def block(self, sch: Schedule, back: SBlockRV, plan: WinogradPlan) -> Blocks:
        """Split the result into blocks, share them between the cores; transform tiles back a vector at a time."""
        n, y, x, f = sch.get_loops(back)
        yb, yt, row = sch.split(y, [plan.row_blocks, plan.rows, TILE])
        xt, column = sch.split(x, [None, TILE])
        fb, ft, lane = sch.split(f, [plan.filter_blocks, None, plan.family.lanes])
        order = [fb, n, yb] if plan.order == "n" else [n, yb, fb]
        sch.reorder(*order, yt, xt, ft, row, column, lane)
        pixels_at, inner = order[1], order[-1]
        if plan.threads > 1 and plan.copy == "block":
            # A block's pixels are made once for all its filters: the loop over these is not shared out.
            pixels_at = sch.fuse(n, yb)
            sch.parallel(pixels_at)
        elif plan.threads > 1:
            inner = sch.fuse(*order)
            sch.parallel(inner)
        sch.unroll(row)
        sch.unroll(column)
        sch.vectorize(lane)
        return Blocks(pixels_at, inner, ft)

    def place_out(self, sch: Schedule, back: SBlockRV, out: SBlockRV, blocks: Blocks, plan: WinogradPlan) -> None:
        """Apply the epilogue to a tile of pixels while it is in registers."""
        sch.reverse_compute_at(out, blocks.vector, preserve_unit_loops=True)
        sch.set_scope(back, 0, "local")
        steps.vectorize_inner(sch, out, plan.family.lanes, unroll=3)

    def tile(self, sch: Schedule, block: SBlockRV, written: SBlockRV, plan: WinogradPlan) -> None:
        """Compute a block's products point by point, in register tiles."""
        point, _, y, x, f, k = sch.get_loops(block)[-6:]
        x, i = sch.split(x, [plan.row_tiles, plan.mr])
        f, j = sch.split(f, [plan.panels, plan.nr])
        tiles = [f, y, x] if plan.inner_order == "n" else [y, x, f]
        sch.reorder(point, *tiles, i, j, k)
        sch.reverse_compute_at(written, tiles[-1], preserve_unit_loops=True)
        steps.vectorize_inner(sch, written, plan.family.lanes, unroll=2)
        kernel = i if plan.mr > 1 else j
        zero = sch.decompose_reduction(block, kernel)
        steps.vectorize_inner(sch, zero, plan.family.lanes, unroll=2)
        steps.tensorize(sch, kernel, plan.intrin_name())

    def place_pixels(self, sch: Schedule, pixels: SBlockRV, pad: SBlockRV, blocks: Blocks, plan: WinogradPlan) -> None:
        """Make a block's pixels where they are used, or all of them before all else, in vectors."""
        if plan.copy == "block":
            sch.compute_at(pixels, blocks.pixels_at, preserve_unit_loops=True)
            sch.compute_at(pad, blocks.pixels_at, preserve_unit_loops=True)
        point, n, y, x, c = sch.get_loops(pixels)[-5:]
        c, lane = sch.split(c, [None, plan.pixel_lanes])
        sch.reorder(n, y, x, c, point, lane)
        sch.unroll(point)
        sch.vectorize(lane)
        image, row, column, _ = sch.get_loops(pad)[-4:]
        steps.vectorize_inner(sch, pad, plan.pixel_lanes)
        if plan.copy == "whole" and plan.threads > 1:
            sch.parallel(sch.fuse(n, y))
            sch.parallel(sch.fuse(image, row))
        else:
            packing.peel(sch, row)
        packing.peel(sch, column)
