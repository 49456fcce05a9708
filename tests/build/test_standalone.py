"""Our strategies inside MetaSchedule as it comes: its builder, runner, database and loop."""

import pytest
import tvm
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.bench.peers.tvm_metaschedule import build_candidate
from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.hardware import host
from qimeng_tvm.request import parse
from qimeng_tvm.schedule.apply import make_task
from qimeng_tvm.search.context import log_to, plain_context
from qimeng_tvm.search.standalone import QimengSearch


@pytest.fixture(scope="module")
def task():
    from qimeng_tvm.hardware import target_of
    from qimeng_tvm.operators import prim_func

    return make_task(prim_func(parse("f32 GEMM 24x32x16"), target_of(host(), 1))[1], host(), 1)


@pytest.mark.parametrize("strategy", ["mcts", "evolutionary"])
def test_stock_metaschedule_measures_what_the_strategy_chooses(task, strategy, tmp_path):
    search = QimengSearch(strategy, seed=1)
    with log_to(tmp_path / "log"):
        # What ms.tune_tir calls; its own context imports every intrinsic that TVM ships, which takes half a minute.
        database = ms.tune_tasks(
            tasks=[plain_context(task, search)],
            task_weights=[1.0],
            work_dir=str(tmp_path),
            max_trials_global=5,
            num_trials_per_iter=3,
            builder=ms.builder.LocalBuilder(max_workers=1, f_build=build_candidate),
            runner=ms.runner.LocalRunner(timeout_sec=30),
            database=ms.database.JSONDatabase(work_dir=str(tmp_path)),
            cost_model="random",
            task_scheduler="round-robin",
        )
    records = database.get_all_tuning_records()
    assert len(records) == 5 and all(r.run_secs for r in records)
    assert all(any(str(i.kind.name) == "Tensorize" for i in r.trace.insts) for r in records)
    assert len({"\n".join(r.trace.as_python()) for r in records}) == 5  # none twice


def test_a_function_that_no_rule_serves_is_refused():
    from tvm import te, topi

    a = te.placeholder((8, 8), name="a")
    module = tvm.IRModule({"main": te.create_prim_func([a, topi.argmax(a, axis=1)])})

    class Context:
        mod, target, task_name = module, tvm.target.Target({"kind": "llvm", "num-cores": 1}), "argmax"

    search = QimengSearch()
    with pytest.raises(ScheduleError, match="no rule serves argmax"):
        search._inst._initialize_with_tune_context(Context())
