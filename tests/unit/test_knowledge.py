"""What the cost model knows before the first trial."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from qimeng_tvm.api import task_of
from qimeng_tvm.hardware import Hardware, host
from qimeng_tvm.request import parse
from qimeng_tvm.schedule.pressure import features_of, plan_of, pressure_of
from qimeng_tvm.search import knowledge
from qimeng_tvm.search.cost import ENOUGH
from qimeng_tvm.search.features import block_of, block_row, told_of
from qimeng_tvm.search.knowledge import Known, read_known, rule_models, shipped_measurements, write_known
from qimeng_tvm.search.records import Record, RecordDatabase, rule_id, workload_key


@pytest.fixture(scope="module")
def task():
    return task_of(parse("f32 GEMM 64x96x128"), host(), 1)


@pytest.fixture(scope="module")
def other():
    return task_of(parse("f32 GEMM 48x64x80 with weights"), host(), 1)


def record_of(task, **more):
    return Record(
        workload_key(task.func, 1),
        task.hardware.fingerprint,
        rule_id(task),
        task.space.defaults(),
        seconds_min=1e-5,
        seconds_median=1e-5,
        block=told_of(task.info),
        **more,
    )


def test_a_record_tells_all_that_its_features_are_made_of(task, tmp_path):
    database = RecordDatabase(tmp_path)
    database.append(record_of(task))
    (kept,) = database.load()
    info = block_of(dict(kept.block))
    assert block_row(kept.decisions, info, task.hardware) == block_row(kept.decisions, task.info, task.hardware)
    assert block_of({}) is None and block_of({"kind": "matmul"}) is None


def test_other_operators_of_the_machine_are_known_and_nothing_else(task, other, tmp_path, monkeypatch):
    monkeypatch.setattr(knowledge, "shipped_measurements", lambda isa: ())
    database = RecordDatabase(tmp_path)
    fine = record_of(other)
    database.append(
        fine,
        record_of(task),  # the task's own: it adds them itself
        replace(fine, fingerprint="another machine"),
        replace(fine, rule="cpu.gemm@0"),
        replace(fine, decisions={**fine.decisions, "unroll": 1}, block={}),
        replace(fine, decisions={**fine.decisions, "unroll": 4}, status="schedule"),
    )
    model = rule_models([task], database, 0)[rule_id(task)]
    assert [len(g.rows) for g in model._known] == [1]
    assert not model.ready  # one point is not enough


def test_shipped_measurements_are_read_back_as_written():
    known = Known(
        "cpu.gemm@3", "zen5", {"m": 1}, (({"kc": 64, "order": "n"}, 1e-6), ({"kc": 128, "order": "m"}, float("inf")))
    )
    assert asdict(read_known(write_known(known))) == asdict(known)


def test_what_is_shipped_ranks_points_without_a_trial(task, tmp_path):
    known = shipped_measurements(task.hardware.isa)
    if not known:
        pytest.skip(f"nothing is shipped for {task.hardware.isa}")
    for one in known:
        Hardware.load(one.profile)
        assert block_of(dict(one.block)) is not None
    model = rule_models([task], RecordDatabase(tmp_path), 0)[rule_id(task)]
    assert model.ready and sum(g.timed for g in model._known) > ENOUGH
    names = ("micro_kernel", "pack_a", "pack_b", "family")
    values = task.space.defaults()
    tiny = next(
        {**values, "micro_kernel": k}
        for k in next(d for d in task.space.decisions if d.name == "micro_kernel").candidates
        if k.startswith("1x")
    )
    rows = [block_row(v, task.info, task.hardware) for v in (values, tiny)]
    scores = model.score(rows)
    assert all(n in values for n in names) and scores[0] > scores[1]


def test_pressure_says_what_a_blocking_asks_for(task):
    values = task.space.defaults()
    plan = plan_of(values, task.info)
    p = pressure_of(task.info, plan, task.hardware)
    assert 0 < p.registers <= 1 and 0 < p.kernel <= 1 and 0 <= p.padding < 1
    deep = plan_of({**values, "kc": 64}, replace(task.info, k=4096))
    shallow = plan_of({**values, "kc": 1 << 30}, replace(task.info, k=4096))
    info = replace(task.info, k=4096)
    assert pressure_of(info, deep, task.hardware).l1 < pressure_of(info, shallow, task.hardware).l1
    odd = replace(task.info, m=task.info.m + 1)
    assert pressure_of(odd, plan_of(values, odd), task.hardware).padding > p.padding
    assert np.isfinite(features_of(task.info, plan, task.hardware)).all()
    assert plan_of({"kc": 64}, task.info) is None and plan_of({**values, "family": "none"}, task.info) is None
