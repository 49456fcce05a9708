# author: hand
"""Depthwise convolutions on CPUs: register tiles of the output slide over the image, channels in the lanes.

A tile of rows x columns of the output, some vectors of channels deep, stays in registers over all taps of its window,
so that what its pixels share of the image is loaded once; the epilogue is applied to it there. The zeros around the
image are either checked where they are read, and the tiles that cannot meet them are peeled, or copied with the image
block by block. Blocks of rows (and of channels) are shared out between the cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, packing, steps
from qimeng_tvm.schedule import window_blocking as blocking
from qimeng_tvm.schedule.windows import border_of


@dataclass
class Nest:
    """The loops of the anchor that later steps refer to."""

    outer: LoopRV  # a block's part of the image is copied under it
    tile: LoopRV  # the innermost loop over tiles
    taps: tuple[LoopRV, LoopRV]  # rows and columns of the window
    registers: tuple[LoopRV, ...]  # rows, columns and vectors of a tile
    lane: LoopRV
    peeled: list[LoopRV]  # loops whose first and last iterations meet the border


class Depthwise(ScheduleRule):
    """Sums over windows, tile by tile in registers."""

    name = "cpu.depthwise"

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Depthwise convolutions with channels innermost."""
        return block.kind == "depthwise" and blocking.has_fixed_vectors(hardware)

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions of a sliding window with analytic defaults."""
        return blocking.window_space(block, hardware)

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Cycles by the model of caches and ports."""
        plan = blocking.window_plan(info, hardware, lambda name: values[name])
        return blocking.window_cycles(info, plan, hardware)

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Tile, place what surrounds the anchor, write out the tile."""
        plan = blocking.window_plan(info, hardware, choose)
        border = border_of(sch, block)
        if border is not None and plan.border == "checked":
            sch.compute_inline(border)
        out = steps.write_back(sch, block, make=True, scope="local")

        nest = self.tile(sch, block, plan)
        packing.peel(sch, *nest.peeled)
        self.place_write_back(sch, block, out, nest, plan)
        if plan.border == "copied":
            self.place_border(sch, border, nest, plan)
        self.write_out(sch, block, nest, plan)

    def tile(self, sch: Schedule, block: SBlockRV, plan: blocking.WindowPlan) -> Nest:
        """Split and reorder the anchor's loops, share the blocks between the cores."""
        n, y, x, c, r, q = sch.get_loops(block)
        yb, yt, yi = sch.split(y, [plan.row_blocks, plan.row_tiles, plan.rows])
        xt, xi = sch.split(x, [plan.column_tiles, plan.columns])
        ct, cv, lane = sch.split(c, [plan.channel_tiles, plan.vectors, plan.lanes])
        orders = {"block": [ct, yt, xt], "row": [yt, ct, xt], "pixel": [yt, xt, ct]}
        tiles = orders[plan.order]
        sch.reorder(n, yb, *tiles, r, q, yi, xi, cv, lane)

        outer, peeled = yb, [yb, yt, xt]
        shared = [n, yb]
        if plan.order == "block":
            outer = ct
            shared.append(ct)
        if plan.threads > 1:
            outer = sch.fuse(*shared)
            sch.parallel(outer)
            peeled = [yt, xt]
        return Nest(outer, tiles[2], (r, q), (yi, xi, cv), lane, peeled)

    def place_write_back(
        self, sch: Schedule, block: SBlockRV, out: SBlockRV, nest: Nest, plan: blocking.WindowPlan
    ) -> None:
        """Apply the epilogue to a tile while it is in registers."""
        sch.reverse_compute_at(out, nest.tile, preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
        steps.vectorize_inner(sch, out, plan.lanes, unroll=len(nest.registers))

    def place_border(self, sch: Schedule, border: Any, nest: Nest, plan: blocking.WindowPlan) -> None:
        """Copy a block's part of the image, with zeros around it, in vectors."""
        sch.compute_at(border, nest.outer, preserve_unit_loops=True)
        packing.peel(sch, *sch.get_loops(border)[-3:-1])
        steps.vectorize_inner(sch, border, plan.lanes)

    def write_out(self, sch: Schedule, block: SBlockRV, nest: Nest, plan: blocking.WindowPlan) -> None:
        """Vectors along the channels; the tile, and the chosen taps, written out."""
        unrolled = {"all": nest.taps, "row": nest.taps[1:], "none": ()}[plan.taps]
        sch.vectorize(nest.lane)
        for loop in (*unrolled, *nest.registers):
            sch.unroll(loop)
        # The loops that set the sums to zero are copies of these.
        sch.decompose_reduction(block, nest.taps[0])
