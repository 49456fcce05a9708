# author: offline-exchange, prompt rule@2, 1 round, the answer of round 1
# checked on: AMD EPYC (znver5), 2026-11-26: 30 operators right
# speed: 1.00 of the reference
"""Poolings with channels innermost: a tile of the output stays in registers over all taps of its windows.

Rows, columns and vectors of channels make up the tile; as taps are written out, what its windows share is loaded once.
The border is checked where it is read, or copied with the image block by block. Either way the tiles at the edge are
peeled off, so that all others are whole vectors of loads and maxima (or sums). Cores share blocks, not pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, packing, steps, window_blocking
from qimeng_tvm.schedule.windows import border_of


@dataclass
class Nest:
    """The anchor's loops, once tiled."""

    n: LoopRV
    yb: LoopRV
    yt: LoopRV
    xt: LoopRV
    ct: LoopRV
    r: LoopRV
    q: LoopRV
    yi: LoopRV
    xi: LoopRV
    cv: LoopRV
    lane: LoopRV

    def tile_loops(self, order: str) -> tuple[LoopRV, LoopRV, LoopRV]:
        """The three loops over tiles, outermost first."""
        if order == "block":
            return (self.ct, self.yt, self.xt)
        if order == "row":
            return (self.yt, self.ct, self.xt)
        return (self.yt, self.xt, self.ct)


class PoolRule(ScheduleRule):
    """The largest or the sum of each window, channel by channel, with accumulators in registers."""

    name = "cpu.pool"
    version = 2

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Poolings, where vectors have a fixed length."""
        return block.kind == "pool" and window_blocking.has_fixed_vectors(hardware)

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions: tile, block of rows, order, taps, border, threads."""
        return window_blocking.window_space(block, hardware)

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Cycles of the whole operator."""
        plan = window_blocking.window_plan(info, hardware, lambda name: values[name])
        return window_blocking.window_cycles(info, plan, hardware)

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Tile, share blocks, peel edges, place what is before and behind, vectorize, unroll."""
        plan = window_blocking.window_plan(info, hardware, choose)
        border = border_of(sch, block)
        if border is not None and plan.border == "checked":
            sch.compute_inline(border)
        out = steps.write_back(sch, block, make=True, scope="local")
        nest = self.tile_anchor(sch, block, plan)
        outer = self.share_blocks(sch, nest, plan)
        self.peel_edges(sch, nest, plan)
        self.place_output(sch, block, out, nest, plan)
        if border is not None and plan.border == "copied":
            self.place_border(sch, border, outer, plan)
        self.write_out(sch, nest, plan)
        # The loops that set the tile to its first value are copies of the finished ones.
        sch.decompose_reduction(block, nest.r)

    def tile_anchor(self, sch: Schedule, block: SBlockRV, plan: window_blocking.WindowPlan) -> Nest:
        """Split rows, columns and channels; the taps go outside of the tile in registers."""
        n, y, x, c, r, q = sch.get_loops(block)
        yb, yt, yi = sch.split(y, [plan.row_blocks, plan.row_tiles, plan.rows])
        xt, xi = sch.split(x, [plan.column_tiles, plan.columns])
        ct, cv, lane = sch.split(c, [plan.channel_tiles, plan.vectors, plan.lanes])
        nest = Nest(n=n, yb=yb, yt=yt, xt=xt, ct=ct, r=r, q=q, yi=yi, xi=xi, cv=cv, lane=lane)
        sch.reorder(n, yb, *nest.tile_loops(plan.order), r, q, yi, xi, cv, lane)
        return nest

    def share_blocks(self, sch: Schedule, nest: Nest, plan: window_blocking.WindowPlan) -> LoopRV:
        """Let the cores share blocks; return the loop that a copied border belongs to."""
        by_channels = plan.order == "block"
        if plan.threads > 1:
            shared = (nest.n, nest.yb, nest.ct) if by_channels else (nest.n, nest.yb)
            outer = sch.fuse(*shared)
            sch.parallel(outer)
            return outer
        return nest.ct if by_channels else nest.yb

    def peel_edges(self, sch: Schedule, nest: Nest, plan: window_blocking.WindowPlan) -> None:
        """Keep the checks of the border, and of an image's rest, out of all tiles inside."""
        if plan.threads > 1:
            # The loop over blocks went into the fused one, which cannot be peeled.
            packing.peel(sch, nest.yt, nest.xt)
        else:
            packing.peel(sch, nest.yb, nest.yt, nest.xt)

    def place_output(
        self, sch: Schedule, block: SBlockRV, out: SBlockRV, nest: Nest, plan: window_blocking.WindowPlan
    ) -> None:
        """Write each tile out of the registers as soon as its windows are done."""
        tile = nest.tile_loops(plan.order)[-1]
        sch.reverse_compute_at(out, tile, preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
        steps.vectorize_inner(sch, out, plan.lanes, unroll=3)

    def place_border(
        self, sch: Schedule, border: SBlockRV, outer: LoopRV, plan: window_blocking.WindowPlan
    ) -> None:
        """Copy the image and its border block by block, in whole vectors inside of the image."""
        sch.compute_at(border, outer, preserve_unit_loops=True)
        packing.peel(sch, *sch.get_loops(border)[-3:-1])
        steps.vectorize_inner(sch, border, plan.lanes)

    def write_out(self, sch: Schedule, nest: Nest, plan: window_blocking.WindowPlan) -> None:
        """Vectorize the lanes; write out the tile, and the taps as planned."""
        sch.vectorize(nest.lane)
        if plan.taps == "all":
            sch.unroll(nest.r)
        if plan.taps in ("all", "row"):
            sch.unroll(nest.q)
        for loop in (nest.yi, nest.xi, nest.cv):
            sch.unroll(loop)
