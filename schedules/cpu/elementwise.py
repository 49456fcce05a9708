# author: hand
"""Functions without reductions: chains of arithmetic, broadcasts, transposes, concatenations, paddings, look-ups.

All is inlined into what is written in the end. Neighbouring axes that every tensor has side by side are one loop;
the innermost runs in vectors, the outer ones are shared out once that gains more than it costs.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule import BlockInfo, Choose, ScheduleRule, SearchSpace, Values, elementwise
from qimeng_tvm.schedule.analysis import root_blocks


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
        """Join, share and vectorize the loops of every output."""
        plan = elementwise.plan_of(choose, info, hardware)
        for output in root_blocks(sch):
            elementwise.finish(sch, output, plan)
