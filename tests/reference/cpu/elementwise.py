"""Functions without reductions: chains of arithmetic, broadcasts, transposes, concatenations, paddings, look-ups.

All is inlined into what is written in the end. Neighbouring axes that every tensor has side by side are one loop;
the innermost runs in vectors, the outer ones are shared out once that gains more than it costs. Where a tensor is read
across the order that it is stored in, loops run over squares, so that cache lines on either side are used up.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, elementwise, packing

#: Pieces for each core that outer loops are fused for.
SHARES = 4


class Elementwise(ScheduleRule):
    """Each element from elements at known places."""

    name = "cpu.elementwise"

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Every function that the reader understands."""
        return block.kind == "elementwise"

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Cores, vectors at a time, squares of a transpose."""
        return elementwise.space(block, hardware)

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Cycles by traffic."""
        return elementwise.estimate(values, info, hardware)

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Join, tile, vectorize and share the loops of every output."""
        plan = elementwise.plan_of(choose, info, hardware)
        for output in elementwise.outputs(sch):
            nest = elementwise.join(sch, output)
            outer = list(nest.loops)
            if nest.across is not None:
                outer = self.squares(sch, nest.loops, nest.across, plan.tile)
            elementwise.vectorize(sch, output, plan.lanes)
            if plan.threads > 1:
                # A single loop was split into vectors: its outer part is shared out.
                loops = outer if len(outer) > 1 else sch.get_loops(output)
                self.share(sch, loops, plan.threads, tiled=nest.across is not None)

    def squares(self, sch: Schedule, loops: Sequence[LoopRV], across: int, side: int) -> list[LoopRV]:
        """Run over squares of the innermost loop and the one that a tensor is stored along; return the outer loops."""
        outer, inner = sch.split(loops[across], [None, min(side, int(sch.get(loops[across]).extent))])
        block, lane = sch.split(loops[-1], [None, min(side, int(sch.get(loops[-1]).extent))])
        order = [*loops[:across], outer, *loops[across + 1 : -1], block]
        sch.reorder(*order, inner, lane)
        packing.peel(sch, outer, block)
        return [*order, inner]

    def share(self, sch: Schedule, loops: Sequence[LoopRV], threads: int, *, tiled: bool) -> None:
        """Share the fewest outer loops that keep every core busy; not the innermost. Of squares, one loop."""
        count, shared = 1, []
        for loop in loops[:-1]:
            extent = int(sch.get(loop).extent)
            if tiled and extent == 1:
                continue
            shared.append(loop)
            count *= extent
            if tiled or count >= SHARES * threads:
                break
        if shared:
            sch.parallel(sch.fuse(*shared) if len(shared) > 1 else shared[0])
