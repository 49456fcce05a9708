"""Softmax, norms, means: all blocks of a row in one pass over the rows.

Partial results of a row's reductions stay in a few vector registers, and all that a row needs is kept in buffers of
one row, which the nearest cache holds. Where rows are stored side by side, vectors run across them instead.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, elementwise, packing, rowwise

#: Partial results that a reduction ends with: below, scalars are as fast as shuffles.
LAST_SUMS = 4
#: Steps of a loop over reduced columns that is unrolled.
UNROLLED = 16


class RowWise(ScheduleRule):
    """Rows that are reduced, and what is computed with the results."""

    name = "cpu.rowwise"

    def lanes(self, hardware: Hardware) -> int:
        """32-bit elements of a vector register."""
        return max(4, hardware.vector_bits // 32)

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Every function that the reader understands."""
        return block.kind == "rowwise"

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Cores, vectors of partial results, rows at a time."""
        return rowwise.space(block, hardware, self.lanes(hardware))

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Cycles by vectors and chains of additions."""
        return rowwise.estimate(values, info, hardware, self.lanes(hardware))

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Split reductions into vectors, place all blocks under the loop over rows, vectorize."""
        plan = rowwise.plan_of(choose, self.lanes(hardware))
        along = not info.transpose_a
        has_rows = rowwise.regroup(sch, plan, along=along)
        if along:
            for reduction in rowwise.reductions_of(sch):
                self.reduce_in_vectors(sch, reduction, plan)
        row = self.merge_rows(sch, rowwise.row_loops(sch, has_rows), plan)
        for part in sch.get_child_blocks(row):
            rowwise.keep_near(sch, part)
        for part in sch.get_child_blocks(row):
            self.vectorize(sch, part, row, plan)

    def reduce_in_vectors(self, sch: Schedule, block: SBlockRV, plan: rowwise.RowPlan) -> None:
        """Reduce along rows in vectors: partial results in ever fewer lanes, each step a block of its own."""
        for most in (plan.accumulators * plan.lanes, plan.lanes, LAST_SUMS):
            loop = sch.get_loops(block)[-1]
            width = rowwise.partial_width(int(sch.get(loop).extent), most, plan.lanes)
            if width > 1:
                _, inner = sch.split(loop, [None, width])
                sch.rfactor(inner, len(sch.get(block).writes[0].source.shape))

    def merge_rows(self, sch: Schedule, loops: list[LoopRV], plan: rowwise.RowPlan) -> LoopRV:
        """Put all blocks under one loop over rows, shared out between the cores."""
        row = sch.merge(*loops) if len(loops) > 1 else loops[0]
        if plan.threads > 1:
            sch.parallel(row)
        return row

    def vectorize(self, sch: Schedule, block: SBlockRV, row: LoopRV, plan: rowwise.RowPlan) -> None:
        """Vectorize a block below its row's loop, along what it writes side by side; set sums to zero beforehand."""
        nest = rowwise.loops_below(sch, block, row)
        if nest.kept:
            elementwise.vectorize(sch, block, plan.side_by_side)
        if nest.reduced:
            if elementwise.is_bounded(sch, block):
                packing.peel(sch, nest.reduced[0])
            elif len(nest.reduced) == 1 and int(sch.get(nest.reduced[0]).extent) <= UNROLLED:
                sch.unroll(nest.reduced[0])
            zero = sch.decompose_reduction(block, nest.reduced[0])
            if nest.kept:
                sch.vectorize(sch.get_loops(zero)[-1])
