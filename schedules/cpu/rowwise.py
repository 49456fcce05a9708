# author: hand
"""Softmax, norms, means: all blocks of a row in one pass over the rows.

Partial results of a row's reductions stay in a few vector registers, and all that a row needs is kept in buffers of
one row, which the nearest cache holds. Where rows are stored side by side, vectors run across them instead.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, rowwise


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
        row = rowwise.compute_together(sch, plan, along=not info.transpose_a)
        for part in sch.get_child_blocks(row):
            rowwise.finish(sch, part, row, plan)
