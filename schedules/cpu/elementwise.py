# author: offline-exchange, prompt rule@2, 1 round, the answer of round 1
# checked on: AMD EPYC (znver5), 2026-11-26: 48 operators right
# speed: 1.02 of the reference
"""Functions without reductions: the longest contiguous loops, in whole vectors, shared between cores.

They are bound by memory. Loops over axes that every tensor has side by side become one; what is transposed is
visited in squares, so that a cache line is used up while it is near; bounds checks are peeled out of hot loops;
only loops outside of the vectors are shared out, in several pieces for each core.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, elementwise, packing

PIECES_PER_CORE = 4


def extent_of(sch: Schedule, loop: LoopRV) -> int:
    """How often a loop runs."""
    return int(sch.get(loop).extent)


class ElementwiseRule(ScheduleRule):
    """Join, square what is transposed, vectorize, share."""

    name = "cpu.elementwise"
    version = 2

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Every function without reductions, on any machine."""
        return block.kind == "elementwise"

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions: cores, vectors at a time, side of the squares."""
        return elementwise.space(block, hardware)

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Traffic of a share, and the fork."""
        return elementwise.estimate(values, info, hardware)

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Schedule every block that writes an output."""
        plan = elementwise.plan_of(choose, info, hardware)
        for output in elementwise.outputs(sch):
            self.schedule_output(sch, output, plan)

    def schedule_output(self, sch: Schedule, output: SBlockRV, plan: elementwise.ElementwisePlan) -> None:
        """All steps for one output, in the order that they need."""
        nest = elementwise.join(sch, output)
        squared = nest.across is not None
        outer = self.make_squares(sch, nest, plan.tile) if squared else tuple(nest.loops[:-1])
        elementwise.vectorize(sch, output, plan.lanes)
        if plan.threads > 1:
            # A function that is a single loop has nothing outside but its loop over vectors.
            known = outer if len(outer) > 0 else tuple(sch.get_loops(output)[:-1])
            pieces = PIECES_PER_CORE * plan.threads
            shared = self.first_that_repeats(sch, known) if squared else self.fewest_outermost(sch, known, pieces)
            self.share_out(sch, shared)

    def make_squares(self, sch: Schedule, nest: elementwise.Joined, side: int) -> tuple[LoopRV, ...]:
        """Read a transposed tensor in squares; return all loops but the innermost."""
        across = nest.loops[nest.across]
        last = nest.loops[-1]
        across_outer, across_inner = sch.split(across, [None, min(side, extent_of(sch, across))])
        last_outer, last_inner = sch.split(last, [None, min(side, extent_of(sch, last))])
        before = tuple(
            across_outer if place == nest.across else loop for place, loop in enumerate(nest.loops[:-1])
        )
        outer = (*before, last_outer, across_inner)
        sch.reorder(*outer, last_inner)
        packing.peel(sch, across_outer, last_outer)
        return outer

    def first_that_repeats(self, sch: Schedule, outer: Sequence[LoopRV]) -> tuple[LoopRV, ...]:
        """The first loop of an extent above 1, by itself: what is peeled must not be fused."""
        return tuple(loop for loop in outer if extent_of(sch, loop) > 1)[:1]

    def fewest_outermost(self, sch: Schedule, outer: Sequence[LoopRV], pieces: int) -> tuple[LoopRV, ...]:
        """The fewest outermost loops that make so many pieces; none if all of them do not."""
        made = 1
        for place, loop in enumerate(outer):
            made = made * extent_of(sch, loop)
            if made >= pieces:
                return tuple(outer[: place + 1])
        return ()

    def share_out(self, sch: Schedule, shared: Sequence[LoopRV]) -> None:
        """Share these loops between the cores, as one."""
        if len(shared) > 1:
            sch.parallel(sch.fuse(*shared))
        elif len(shared) == 1:
            sch.parallel(shared[0])
