"""Poolings on CPUs: register tiles of the output slide over the image, channels in the lanes.

The largest or the sum of each window is found in registers; dividing by the number of pixels is part of the epilogue,
which is applied to the tile there. The border is either checked where it is read, and the tiles that cannot meet it are
peeled, or copied with the image block by block. An average over a whole image has no columns to hold in registers, and
takes more channels. Blocks of rows (and of channels) are shared out between the cores.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, packing, steps, window_blocking
from qimeng_tvm.schedule.windows import border_of


class Pool(ScheduleRule):
    """Maxima and averages of windows, tile by tile in registers."""

    name = "cpu.pool"

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Poolings with channels innermost."""
        return block.kind == "pool" and window_blocking.has_fixed_vectors(hardware)

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions of a sliding window with analytic defaults."""
        return window_blocking.window_space(block, hardware)

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Cycles by the model of caches and ports."""
        plan = window_blocking.window_plan(info, hardware, lambda name: values[name])
        return window_blocking.window_cycles(info, plan, hardware)

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Tile, place what surrounds the anchor, write out the tile."""
        plan = window_blocking.window_plan(info, hardware, choose)
        border = border_of(sch, block)
        if border is not None and plan.border == "checked":
            sch.compute_inline(border)
        out = steps.write_back(sch, block, make=True, scope="local")

        n, y, x, c, r, q = sch.get_loops(block)
        yb, yt, yi = sch.split(y, [plan.row_blocks, plan.row_tiles, plan.rows])
        xt, xi = sch.split(x, [plan.column_tiles, plan.columns])
        ct, cv, lane = sch.split(c, [plan.channel_tiles, plan.vectors, plan.lanes])
        tiles = {"block": [ct, yt, xt], "row": [yt, ct, xt], "pixel": [yt, xt, ct]}[plan.order]
        sch.reorder(n, yb, *tiles, r, q, yi, xi, cv, lane)
        # A block's part of the image is all its channels, but where those of a tile pass over the whole block.
        outer, shared = (ct, [n, yb, ct]) if plan.order == "block" else (yb, [n, yb])
        peeled = [yb, yt, xt]
        if plan.threads > 1:
            outer = sch.fuse(*shared)
            sch.parallel(outer)
            peeled = [yt, xt]
        packing.peel(sch, *peeled)

        sch.reverse_compute_at(out, tiles[-1], preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
        steps.vectorize_inner(sch, out, plan.lanes, unroll=3)
        if border is not None and plan.border == "copied":
            sch.compute_at(border, outer, preserve_unit_loops=True)
            packing.peel(sch, *sch.get_loops(border)[-3:-1])
            steps.vectorize_inner(sch, border, plan.lanes)

        sch.vectorize(lane)
        taps = {"all": (r, q), "row": (q,), "none": ()}[plan.taps]
        for loop in (*taps, yi, xi, cv):
            sch.unroll(loop)
        # The loops that set the sums to zero are copies of these.
        sch.decompose_reduction(block, r)
