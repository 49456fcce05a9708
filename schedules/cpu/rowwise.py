# author: offline-exchange, prompt rule@2, 1 round, the answer of round 1
# checked on: AMD EPYC (znver5), 2026-11-26: 45 operators right
# speed: 1.01 of the reference
"""Softmax, norms and reductions: everything that a row needs happens in one pass over the rows.

A row is read from memory once; every later block finds it in the nearest cache. Where vectors run along a row, a
reduction becomes several vectors of partial results (they hide the latency of an addition), then one vector, then
four numbers, then the result. Where rows are stored side by side, a vector holds the same column of several rows, and
nothing has to be shuffled. Cores share the rows.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, elementwise, packing, rowwise

ELEMENT_BITS = 32
# Of fewer partial results than that, scalars are as fast as shuffles.
FEWEST = 4
# A single reduced loop that is no longer than that is unrolled.
SHORT = 16


def lanes_of(hardware: Hardware) -> int:
    """Elements of a vector register, at least a few."""
    return max(FEWEST, hardware.vector_bits // ELEMENT_BITS)


class RowWise(ScheduleRule):
    """All blocks of a row under one loop over rows."""

    name = "cpu.rowwise"
    version = 2

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Functions that reduce rows, on any machine."""
        return block.kind == "rowwise"

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Decisions: cores, vectors of partial results, rows at a time."""
        return rowwise.space(block, hardware, lanes_of(hardware))

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Cycles of a choice."""
        return rowwise.estimate(values, info, hardware, lanes_of(hardware))

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Regroup loops, split reductions, join the rows, share them, vectorize what is below."""
        plan = rowwise.plan_of(choose, lanes_of(hardware))
        along = not info.transpose_a
        reductions = rowwise.reductions_of(sch)
        has_rows = rowwise.regroup(sch, plan, along=along)
        if along:
            for reduction in reductions:
                self.split_reduction(sch, reduction, plan)
        row = self.join_rows(sch, has_rows)
        if plan.threads > 1:
            sch.parallel(row)
        for part in sch.get_child_blocks(row):
            rowwise.keep_near(sch, part)
        for part in sch.get_child_blocks(row):
            self.finish_block(sch, part, row, plan)

    def split_reduction(self, sch: Schedule, block: SBlockRV, plan: rowwise.RowPlan) -> None:
        """Reduce columns to vectors of partial results, these to one vector, that to a few numbers."""
        for most in (plan.accumulators * plan.lanes, plan.lanes, FEWEST):
            loop = sch.get_loops(block)[-1]
            width = rowwise.partial_width(int(sch.get(loop).extent), most, plan.lanes)
            if width > 1:
                axis = len(sch.get(block).writes[0].source.shape)
                parts = sch.split(loop, [None, width])
                sch.rfactor(parts[1], axis)

    def join_rows(self, sch: Schedule, has_rows: bool) -> LoopRV:
        """Bring all blocks under one loop over rows."""
        loops = rowwise.row_loops(sch, has_rows)
        return sch.merge(*loops) if len(loops) > 1 else loops[0]

    def finish_block(self, sch: Schedule, block: SBlockRV, row: LoopRV, plan: rowwise.RowPlan) -> None:
        """Vectorize what a block writes side by side; start its reduction apart."""
        nest = rowwise.loops_below(sch, block, row)
        if len(nest.kept) > 0:
            elementwise.vectorize(sch, block, plan.side_by_side)
        if len(nest.reduced) > 0:
            self.finish_reduction(sch, block, nest)

    def finish_reduction(self, sch: Schedule, block: SBlockRV, nest: rowwise.Below) -> None:
        """Keep conditions out of the hot loop or unroll a short one; then decompose."""
        first = nest.reduced[0]
        if elementwise.is_bounded(sch, block):
            packing.peel(sch, first)
        elif len(nest.reduced) == 1 and int(sch.get(first).extent) <= SHORT:
            sch.unroll(first)
        zero = sch.decompose_reduction(block, first)
        if len(nest.kept) > 0:
            sch.vectorize(sch.get_loops(zero)[-1])
