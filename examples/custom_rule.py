"""A schedule rule of one's own: named decisions, and the steps that they are for.

In `schedules/cpu/` a file with such a class is found by itself; its `priority` decides over rules that match, too.
Run: python examples/custom_rule.py
"""

import numpy as np
import tvm
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from qimeng_tvm.compiler import compile_task
from qimeng_tvm.hardware import Hardware, host, target_of
from qimeng_tvm.operators import prim_func
from qimeng_tvm.request import parse
from qimeng_tvm.schedule import BlockInfo, Choose, Decision, ScheduleRule, SearchSpace
from qimeng_tvm.schedule.apply import Task, narrow_indices
from qimeng_tvm.schedule.readers import analyze


class Tiles(ScheduleRule):
    """A plain tile of C for every step of k: no intrinsic, for any machine."""

    name = "example.tiles"

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """One matrix product in float32."""
        return block.kind == "matmul" and block.batch == 1 and block.out_dtype == "float32"

    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Rows and columns of the tile; by default as many columns as two vectors hold."""
        rows = tuple(n for n in (1, 2, 4, 8) if block.m % n == 0)
        columns = tuple(n for n in (8, 16, 32, 64) if block.n % n == 0) or (block.n,)
        two = hardware.vector_bits // 16
        return SearchSpace(
            (
                Decision("rows", rows, rows[-1], "rows of a tile"),
                Decision("columns", columns, min(columns, key=lambda n: abs(n - two)), "columns of a tile"),
            )
        )

    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Walk k outside of a tile whose columns are vectors."""
        i, j, k = sch.get_loops(block)
        i_out, i_in = sch.split(i, [None, choose("rows")])
        j_out, j_in = sch.split(j, [None, choose("columns")])
        sch.reorder(i_out, j_out, k, i_in, j_in)
        sch.unroll(i_in)
        sch.vectorize(j_in)  # before the next step: what only updates C is no reduction any more, for TVM
        sch.decompose_reduction(block, k)


machine = host()
rng = np.random.default_rng(0)
a, b = rng.standard_normal((64, 128), dtype=np.float32), rng.standard_normal((128, 96), dtype=np.float32)
_, func = prim_func(parse("f32 matmul 64x96x128"), target_of(machine, 1))
func = narrow_indices(func)
info, rule = analyze(func, 1), Tiles()
assert info is not None and rule.match(info, machine)
task = Task(func, info, machine, rule, rule.space(info, machine))

for values in ({}, {"rows": 1}, {"rows": 4, "columns": 32}):
    compiled = compile_task(task, values)
    c = tvm.runtime.tensor(np.full((64, 96), np.nan, np.float32))
    arguments = [tvm.runtime.tensor(a), tvm.runtime.tensor(b), c]
    compiled["main"](*arguments)
    np.testing.assert_allclose(c.numpy(), a.astype(np.float64) @ b, rtol=1e-4, atol=1e-4)
    seconds = min(compiled.library.time_evaluator("main", tvm.cpu(), number=20, repeat=5)(*arguments).results)
    print(f"{dict(compiled.values)}: right, {info.flops / seconds / 1e9:.1f} GFLOP/s")
