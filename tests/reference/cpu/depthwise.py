"""Depthwise convolutions on CPUs: register tiles of the output slide over the image, channels in the lanes.

A tile of rows x columns of the output, some vectors of channels deep, stays in registers over all taps of its window,
so that what its pixels share of the image is loaded once; the epilogue is applied to it there. The zeros around the
image are either checked where they are read, and the tiles that cannot meet them are peeled, or copied with the image
block by block. Blocks of rows (and of channels) are shared out between the cores.

A micro-kernel adds one tap to a row of the tile; where no family has the channels' types and vectors, or pixels are
left over in a row, the same loops are plain vector code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, packing, steps
from qimeng_tvm.schedule import window_blocking as blocking
from qimeng_tvm.schedule.windows import border_of


@dataclass
class Nest:
    """The loops of the anchor that later steps refer to."""

    outer: LoopRV  # a block's part of the image is copied under it
    tile: LoopRV  # the innermost loop over tiles
    taps: tuple[LoopRV, LoopRV]  # rows and columns of the window
    registers: tuple[LoopRV, LoopRV, LoopRV]  # rows, columns and vectors of a tile
    lane: LoopRV
    peeled: list[LoopRV]  # loops whose first and last iterations meet the border


class Depthwise(ScheduleRule):
    """Sums over windows, tile by tile in registers."""

    name = "cpu.depthwise"
    version = 2

    def families(self, block: BlockInfo, hardware: Hardware) -> tuple[IntrinFamily, ...]:
        """Families for the operand types whose vectors are as long as those of the channels."""
        return blocking.lane_families(block, hardware)

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Depthwise convolutions with channels innermost."""
        return block.kind == "depthwise" and blocking.has_fixed_vectors(hardware)

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions of a sliding window with analytic defaults."""
        return blocking.window_space(block, hardware, self.families(block, hardware))

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Cycles by the model of caches and ports."""
        plan = blocking.window_plan(info, hardware, lambda name: values[name], self.families(info, hardware))
        return blocking.window_cycles(info, plan, hardware)

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Tile, place what surrounds the anchor, write out or tensorize the tile."""
        plan = blocking.window_plan(info, hardware, choose, self.families(info, hardware))
        border = border_of(sch, block)
        if border is not None and plan.border == "checked" and plan.family is None:
            sch.compute_inline(border)
        out = steps.write_back(sch, block, make=True, scope="local")
        loads = [border, sch.cache_read(block, 1, "local")] if plan.family is not None and plan.in_local else []

        nest = self.tile(sch, block, plan)
        packing.peel(sch, *nest.peeled)
        self.place_write_back(sch, block, out, nest, plan)
        if plan.border == "copied":
            self.place_border(sch, border, nest, plan)
        if plan.family is None:
            self.write_out(sch, block, nest, plan)
        else:
            self.place_loads(sch, loads, nest, plan)
            self.tensorize(sch, block, nest, plan, info)

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
        sch.vectorize(nest.lane)
        for loop in (*self.written_out(nest, plan), *nest.registers):
            sch.unroll(loop)
        # The loops that set the sums to zero are copies of these.
        sch.decompose_reduction(block, nest.taps[0])

    def written_out(self, nest: Nest, plan: blocking.WindowPlan) -> tuple[LoopRV, ...]:
        """The loops over taps that are written out."""
        chosen: dict[str, tuple[LoopRV, ...]] = {"all": nest.taps, "row": nest.taps[1:], "none": ()}
        return chosen[plan.taps]

    def place_loads(self, sch: Schedule, loads: list[Any], nest: Nest, plan: blocking.WindowPlan) -> None:
        """Load the pixels of a row of the tile, zeros at the border, and the filters' values right before their use."""
        for load in loads:
            sch.compute_at(load, nest.registers[0], preserve_unit_loops=True)
            sch.set_scope(load, 0, "local")
            steps.vectorize_inner(sch, load, plan.lanes, unroll=3)

    def tensorize(self, sch: Schedule, block: SBlockRV, nest: Nest, plan: blocking.WindowPlan, info: BlockInfo) -> None:
        """Sums of zero, then a micro-kernel for each row of the tile and each tap."""
        window = blocking.window_of(info)
        for loop in (*self.written_out(nest, plan), nest.registers[0]):
            sch.unroll(loop)
        zero = sch.decompose_reduction(block, nest.taps[0])
        steps.vectorize_inner(sch, zero, plan.lanes, unroll=4)
        _, columns, vectors, lane = sch.get_loops(block)[-4:]
        channels = sch.fuse(vectors, lane)
        # A tile of one column has no loop over columns that could be replaced.
        kernel = columns if plan.columns > 1 else channels
        if plan.row_slots > window.out[0]:
            # Rows are checked outside of what is replaced, which is without a check.
            sch.blockize(kernel)
            inside = sch.get_loops(block)
            kernel = inside[-2] if plan.columns > 1 else inside[-1]
        steps.tensorize(sch, kernel, plan.intrin_name(window))
