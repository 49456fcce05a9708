"""Tuning a small product for real, on this machine: measured, resumed, wrong and broken candidates refused."""

import dataclasses
import io
import logging
import os
import signal
import time
import types

import numpy as np
import pytest
import tvm

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import QimengError, RecordError, SearchError
from qimeng_tvm.hardware import host, target_of
from qimeng_tvm.intrin import registry
from qimeng_tvm.operators import prim_func
from qimeng_tvm.request import Request
from qimeng_tvm.schedule.apply import build_schedule, make_task
from qimeng_tvm.schedule.contract import Decision, SearchSpace
from qimeng_tvm.search import Limits, RecordDatabase, TuneBar, tune, workload_key
from qimeng_tvm.search.candidate import Case, Timing, expected_product, make_inputs, probe_of, wrong_numbers
from qimeng_tvm.search.measure import WORKER_MODULE, Bench, job_of, judge
from qimeng_tvm.search.session import Trial, new_state
from qimeng_tvm.search.traces import open_database


def task_for(m=64, n=64, k=64, threads=1, **more):
    machine = host()
    try:
        _, func = prim_func(Request("matmul", m, n, k, **more), target_of(machine, threads))
        task = make_task(func, machine, threads)
    except QimengError as error:
        pytest.skip(str(error))
    if task is None:
        pytest.skip(f"{machine.name} has no micro-kernel for this product")
    return task


@pytest.fixture(scope="module")
def worker():
    with Worker(preload=(WORKER_MODULE,)) as running:
        yield running


def job_for(task, values=None):
    state = new_state(task, 0, [])
    schedule = build_schedule(task, values)
    return job_of(Trial("token", state, values or {}, schedule, "key", "test"))


def test_tune_resume_and_records(tmp_path):
    task = task_for()
    told = []
    found = tune(task, 4, tmp_path, progress=lambda *now: told.append(now))
    assert (found.trials, found.measured, found.stopped) == (4, 4, "")
    assert [t[0] for t in told] == [0, 1, 2, 3, 4]
    assert all(t[1] == 4 for t in told) and told[-1][2] > 0
    assert told[-1][3] == 0
    database = RecordDatabase(tmp_path)
    timed = [r for r in database.load() if r.status == "ok"]
    assert len(timed) == 4
    assert any(dict(r.decisions) == task.space.defaults() for r in timed)
    assert found.record.seconds_min == min(r.seconds_min for r in timed)
    # Nothing was verified yet, so nothing may be applied.
    assert database.best(task) is None
    database.mark_verified(found.record)
    assert dict(database.best(task).decisions) == dict(found.values)
    # TVM's own tools read the same records, and their traces give the same schedules.
    opened = open_database(tmp_path)
    assert len(opened) == 4
    # The same call has nothing left to do; a larger one measures what is new.
    again = tune(task, 4, tmp_path)
    assert (again.trials, again.measured) == (4, 0)
    assert again.values == found.values
    more = tune(task, 6, tmp_path)
    assert (more.trials, more.measured) == (6, 2)
    timed = [r for r in RecordDatabase(tmp_path).load() if r.status != "schedule"]
    assert len({r.key for r in timed}) == len({r.schedule for r in timed}) == 6
    assert not logging.getLogger("tvm.s_tir.meta_schedule").handlers
    assert (tmp_path / "tune.log").stat().st_size > 0


def test_zero_trials_measure_nothing(tmp_path):
    task = task_for()
    found = tune(task, 0, tmp_path / "db")
    assert dict(found.values) == task.space.defaults()
    assert found.record is None and not (tmp_path / "db").exists()


def spoiled_copy(func):
    """Return the function with the first addition turned into a subtraction."""
    text = tvm.ir.save_json(func)
    assert text.count('"prim.Add"') > 0
    return tvm.ir.load_json(text.replace('"prim.Add"', '"prim.Sub"', 1))


def test_wrong_family_never_gets_a_time(tmp_path, monkeypatch):
    """A family whose code subtracts where it should add: every candidate is refused, and tuning goes on."""
    task = task_for()
    key = str(task.space.defaults()["family"])
    good = registry.family(key)

    def build(*values):
        desc, _ = good.build(*values)
        return desc, spoiled_copy(desc)

    wrong = dataclasses.replace(good, build=build, version=good.version + 90)
    monkeypatch.setattr(registry, "families", lambda: {key: wrong})
    spoiled = task_for()
    found = tune(spoiled, 3, tmp_path)
    records = [r for r in RecordDatabase(tmp_path).load() if r.status != "schedule"]
    assert [r.status for r in records] == ["numbers"] * 3
    assert all("elements are wrong" in r.error and r.seconds_min is None for r in records)
    assert found.record is None and dict(found.values) == spoiled.space.defaults()


@pytest.mark.parametrize(
    "more",
    [
        {"constant_b": True},
        {"constant_b": True, "epilogue": ("bias", "relu")},
        {"transpose_a": True, "transpose_b": True},
        {"batch": 3},
        {"a_dtype": "bfloat16", "b_dtype": "bfloat16", "out_dtype": "bfloat16"},
        {"a_dtype": "int8", "b_dtype": "int8", "out_dtype": "int32"},
        {"m": 1, "n": 37, "k": 53},
    ],
)
def test_defaults_of_every_kind_are_right_and_timed(worker, more):
    task = task_for(**more)
    found = Bench(worker).measure(job_for(task))
    assert found.error == "" and found.status == "ok"
    assert 0 < found.seconds_min <= found.seconds_median


def crash(*_):
    os.kill(os.getpid(), signal.SIGSEGV)


def test_build_error_crash_hang_and_garbage_are_answers(worker, monkeypatch):
    task = task_for()
    bench = Bench(worker, Limits(build=30, run=30))
    job = job_for(task)
    # Another target's code cannot be built here: an error, not an exception.
    found = bench.build(dataclasses.replace(job, target={"kind": "no-such-kind"}))
    assert found.status == "build" and "no-such-kind" in found.error
    real = worker.call

    def instead_of_measuring(function):
        monkeypatch.setattr(
            worker, "call", lambda name, *rest: real(function if name.endswith(":measure") else name, *rest)
        )
        return bench.measure(job)

    found = instead_of_measuring(crash)
    assert found.status == "run" and "SIGSEGV" in found.error
    found = instead_of_measuring(lambda *_: "very fast")
    assert found.status == "run" and "answered with a str" in found.error
    bench.limits = Limits(build=30, run=1)
    found = instead_of_measuring(lambda *_: time.sleep(60))
    assert found.status == "run" and "no answer within 1 s" in found.error
    monkeypatch.undo()
    bench.limits = Limits()
    assert bench.measure(job).status == "ok"


@pytest.mark.parametrize(
    ("dtype", "seconds", "believed"),
    [("float32", 0.025, True), ("float32", 0.01, False), ("uint8", 0.01, True), ("bfloat16", 0.001, True)],
)
def test_faster_than_the_peak_is_a_measuring_error(dtype, seconds, believed):
    info = types.SimpleNamespace(flops=2e9, a_dtype=dtype, threads=1)
    machine = dataclasses.replace(host(), peaks={"float32": 100.0, "int8": 400.0}, peaks_all={})
    job = types.SimpleNamespace(
        trial=types.SimpleNamespace(task=types.SimpleNamespace(task=types.SimpleNamespace(info=info)))
    )
    found = judge(job, Timing("ok", seconds, 0.03), machine)
    assert found.status == ("ok" if believed else "timing")
    assert believed or ("measuring error" in found.error and found.seconds_min is None)


@pytest.mark.parametrize("more", [{}, {"transpose_a": True}, {"transpose_b": True}, {"batch": 2}, {"m": 1, "n": 5}])
def test_oracle_and_inputs(more):
    request = Request("matmul", **{"m": 6, "n": 5, "k": 7, **more})
    _, func = prim_func(request, target_of(host(), 1))
    probe = probe_of("w", func, 7)
    assert probe.operands is not None
    a, b = make_inputs(probe)
    left = np.swapaxes(a, -1, -2) if request.transpose_a else a
    right = np.swapaxes(b, -1, -2) if request.transpose_b else b
    assert np.array_equal(expected_product(probe, (a, b)), (left.astype(float) @ right.astype(float)))
    # Any order of summation, in float32, gives the same.
    assert np.array_equal(left @ right, expected_product(probe, (a, b)))
    assert np.abs(a).max() > 256


def test_wrong_numbers_are_named():
    right = np.arange(12, dtype=np.float32).reshape(3, 4)
    for exact in (True, False):
        case = Case((), right, exact)
        assert wrong_numbers(right.copy(), case) == ""
        for bad in (np.nan, np.inf, 7.5):
            got = right.copy()
            got[1, 2] = bad
            assert wrong_numbers(got, case).startswith("1 of 12 elements are wrong, first C[1, 2]")
    near = right * np.float32(1 + 2e-7)
    assert wrong_numbers(near, Case((), right, False)) == ""
    assert wrong_numbers(near, Case((), right, True)) != ""


def test_bad_calls(tmp_path):
    task = task_for()
    with pytest.raises(SearchError, match="no task"):
        tune([], 4, tmp_path)
    with pytest.raises(SearchError, match="0 or more"):
        tune(task, -1, tmp_path)
    with pytest.raises(SearchError, match="threads"):
        tune(task, 4, tmp_path, threads=2)
    other = dataclasses.replace(task.hardware, cpu="other")
    with pytest.raises(SearchError, match="not this machine"):
        tune(dataclasses.replace(task, hardware=other), 4, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="another folder"):
        tune(task, 4, tmp_path / "file" / "db")


def test_database_that_breaks_while_tuning(tmp_path, monkeypatch):
    """What the records raise inside MetaSchedule's callbacks comes out as it is."""
    task = task_for()

    def full(self, *records, tvm_record=None):
        raise RecordError("no room left")

    monkeypatch.setattr(RecordDatabase, "append", full)
    with pytest.raises(RecordError, match="no room left"):
        tune(task, 2, tmp_path)


def test_time_limit_and_several_tasks(tmp_path):
    tasks = [task_for(), task_for(m=48), task_for()]
    found = tune(tasks, 4, tmp_path, weights=[1, 1, 2])
    first, second, third = found.results
    assert first.trials + second.trials == 4 and min(first.trials, second.trials) >= 1
    assert (first.trials, first.values) == (third.trials, third.values)
    again = tune(tasks, 4, tmp_path, weights=[1, 1, 2])
    assert again.measured == 0 and [r.trials for r in again.results] == [r.trials for r in found.results]
    late = tune(tasks, 8, tmp_path, time_limit=0.0)
    assert late.stopped == "time is up" and "4 of 8" in late.resume and late.measured == 0


def test_defaults_of_every_task_come_first_and_none_gets_nothing(tmp_path):
    tasks = [task_for(m=m) for m in (32, 48, 64, 80)]
    told = []
    few = tune(tasks, 2, tmp_path, progress=lambda *now: told.append(now))
    assert [r.measured for r in few.results] == [1] * 4 and told[-1][:2] == (4, 4)
    assert "every task gets one" in (tmp_path / "tune.log").read_text()
    tried = [r for r in RecordDatabase(tmp_path).load() if r.status != "schedule"]
    assert {r.workload: dict(r.decisions) for r in tried} == {
        workload_key(t.func, 1): t.space.defaults() for t in tasks
    }
    # What was tuned before counts, and the new one still comes before anyone's second trial.
    more = tune([*tasks, task_for(m=96)], 10, tmp_path)
    order = [r.workload for r in RecordDatabase(tmp_path).load() if r.status != "schedule"]
    assert more.measured == 6 and more.trials == 10
    assert len(set(order[:5])) == 5 and min(r.trials for r in more.results) >= 1


def test_a_task_with_nothing_left_to_try_leaves_its_trials_to_the_others(tmp_path):
    small, large = task_for(m=48), task_for(m=64)
    values = {name: (value,) for name, value in small.space.defaults().items()}
    decisions = tuple(Decision(d.name, values[d.name], d.default, d.doc) for d in small.space.decisions)
    small = dataclasses.replace(small, space=SearchSpace(decisions, small.space.illegal))
    found = tune([small, large], 8, tmp_path, weights=[100, 1])
    assert [r.trials for r in found.results] == [1, 7]
    assert tune([small, large], 8, tmp_path, weights=[100, 1]).measured == 0


def test_bar_shows_what_it_is_told():
    from rich.console import Console

    text = io.StringIO()
    with TuneBar("GEMM", Console(file=text, width=120, force_terminal=True)) as bar:
        bar(3, 32, 51.27, 75.0)
    shown = text.getvalue()
    for part in ("GEMM", "3/32 trials", "51.3 GFLOP/s", "1 min 15 s left"):
        assert part in shown
