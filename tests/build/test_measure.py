"""Two workers that take turns, on real candidates: what is broken costs itself alone."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import tvm
from spoiling import crash, hang, spoil, subtract
from tvm import relax

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.compiler import linker_for
from qimeng_tvm.errors import BuildError, QimengError
from qimeng_tvm.hardware import Hardware, host, target_of
from qimeng_tvm.hardware.model import Cache
from qimeng_tvm.hardware.target import target_dict
from qimeng_tvm.operators import prim_func
from qimeng_tvm.relax.functions import weights_of
from qimeng_tvm.request import Request
from qimeng_tvm.schedule.apply import L3, MEMORY, NEAR, build_schedule, make_task
from qimeng_tvm.search import Limits, RecordDatabase, tune
from qimeng_tvm.search.board import export
from qimeng_tvm.search.candidate import clock_of, copies_of
from qimeng_tvm.search.lab import open_lab
from qimeng_tvm.search.measure import WORKER_MODULE, Bench, Lab, evicting, job_of
from qimeng_tvm.search.records import task_key
from qimeng_tvm.search.session import Measurement, Session, Trial, new_state


def task_for(m=64, n=64, k=64, threads=1):
    machine = host()
    try:
        _, func = prim_func(Request("matmul", m, n, k), target_of(machine, threads))
        task = make_task(func, machine, threads)
    except QimengError as error:
        pytest.skip(str(error))
    if task is None:
        pytest.skip(f"{machine.name} has no micro-kernel for this product")
    return task


def job_named(name, task):
    return job_of(Trial(name, new_state(task, 0, []), {}, build_schedule(task), name, "test"))


@pytest.fixture(scope="module")
def lab():
    limits = Limits(run=3.0)
    with Worker(preload=(WORKER_MODULE,)) as one, Worker(preload=(WORKER_MODULE,)) as two:
        one.start()
        two.start()
        yield Lab([Bench(one, limits), Bench(two, limits)], in_turn=True)


def test_weights_of_a_model_come_from_where_they_do_in_it():
    task = task_for()
    sizes = {1: 32 << 10, 2: 1 << 20, 3: 16 << 20}
    machine = replace(task.hardware, caches=tuple(Cache(n, size) for n, size in sizes.items()))
    found = {w: evicting(replace(task, hardware=machine, weights=w)) for w in (NEAR, L3, MEMORY)}
    assert found[NEAR] == 0 and sizes[2] < found[L3] < sizes[3] < found[MEMORY]
    deep = replace(machine, caches=machine.caches[:2])
    assert evicting(replace(task, hardware=deep, weights=MEMORY)) > sizes[2]


def test_every_call_has_other_copies_of_the_weights():
    a, b, c = (tvm.runtime.tensor(np.full((4, 4), i, "float32")) for i in range(3))
    sets = copies_of([a, b, c], (1,), 64 * 5)
    assert len(sets) == 5 and all(s[0] is a and s[2] is c for s in sets)
    assert len({id(s[1]) for s in sets}) == 5 and all((s[1].numpy() == 1).all() for s in sets)
    assert copies_of([a, b, c], (1,), 0) == copies_of([a, b, c], (), 1 << 20) == [[a, b, c]]
    seen = []
    clock = clock_of({"main": lambda *xs: seen.append(id(xs[1]))}, [a, b, c], tvm.cpu(), (1,), 64 * 3)
    assert len(clock(2, 4)) == 4 and len(seen) == 9
    assert all(len(set(seen[n : n + 3])) == 3 for n in range(7))


@pytest.mark.parametrize("weights", [L3, MEMORY])
def test_a_candidate_is_right_and_timed_with_weights_from_afar(lab, weights):
    machine = host()
    _, func = prim_func(Request("matmul", 64, 64, 64, constant_b=True), target_of(machine, 1))
    task = make_task(func, machine, 1, weights)
    assert task is not None and task.weights == weights
    job = job_named("afar", task)
    assert job.probe.evicting > 0 and job.probe.weights == (1,)
    found = lab.lanes[0].measure(job)
    assert found.status == "ok" and found.seconds_min > 0, found
    # What has no constant operand has no weights.
    assert make_task(task.func.without_attr("layout_free_buffers"), machine, 1, weights).weights == NEAR


def test_records_tell_where_weights_came_from(tmp_path):
    machine = host()
    _, func = prim_func(Request("matmul", 64, 64, 64, constant_b=True), target_of(machine, 1))
    near, far = (make_task(func, machine, 1, w) for w in (NEAR, MEMORY))
    assert tune([far], 1, tmp_path, machine).measured == 1
    (record,) = RecordDatabase(tmp_path).load()
    assert record.operator == f"{far.info.operator}, weights from memory" and record.workload == task_key(far)
    assert tune([near], 1, tmp_path, machine).measured == 1, "times that do not compare are not taken for others"


@pytest.mark.parametrize(("elements", "where"), [(1 << 10, NEAR), (1 << 20, L3), (1 << 23, MEMORY)])
def test_where_weights_are_follows_from_what_a_model_reads(elements, where):
    sizes = {1: 32 << 10, 2: 1 << 20, 3: 16 << 20}
    machine = replace(host(), caches=tuple(Cache(n, size) for n, size in sizes.items()))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([elements], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.add(x, relax.const(np.ones(elements // 2, "float32").repeat(2))))
            out = builder.emit_output(relax.op.nn.relu(y))
        builder.emit_func_output(out)
    assert weights_of(builder.finalize(), machine, 1) == where


def test_a_broken_candidate_costs_itself_alone(lab, monkeypatch):
    """Good ones stand on both sides of each kind of bad one, so that either worker has libraries to lose."""
    key = str(task_for().space.defaults()["family"])
    kinds = {"wrong": subtract, "crash": crash, "hang": hang}
    bad = {}
    for name, change in kinds.items():
        with monkeypatch.context() as patch:
            spoil(patch, key, change)
            bad[name] = job_named(name, task_for())
    good = [job_named(f"good{i}", task_for(m=48 + 16 * i)) for i in range(4)]
    jobs = [good[0], bad["wrong"], good[1], bad["crash"], bad["hang"], good[2], good[3]]
    told = []
    found = lab.run(jobs, lambda job, _: told.append(job.trial.token), lambda: False)
    assert told == [job.trial.token for job in jobs]
    assert [f.status for f in found] == ["ok", "numbers", "ok", "run", "run", "ok", "ok"]
    assert "elements are wrong" in found[1].error
    assert "SIGSEGV" in found[3].error
    assert "no answer within 3 s" in found[4].error
    assert all(f.error == "" and 0 < f.seconds_min <= f.seconds_median for f in found if f.status == "ok")


def test_a_call_under_way_ends_with_the_run(lab, monkeypatch):
    """What goes wrong with the records does not wait for a candidate that hangs."""
    with monkeypatch.context() as patch:
        spoil(patch, str(task_for().space.defaults()["family"]), hang)
        jobs = [job_named("first", task_for(m=32)), job_named("second", task_for())]
    for bench in lab.lanes:
        bench.limits = Limits(run=300.0)
    good = job_named("good", task_for())

    def full(job, found):
        raise OSError("disk full")

    start = time.monotonic()
    with pytest.raises(OSError, match="disk full"):
        Lab(lab.lanes, in_turn=False).run([good, jobs[0]], full, lambda: False)
    assert time.monotonic() - start < 60
    for bench in lab.lanes:
        bench.limits = Limits(run=3.0)
    assert [f.status for f in lab.run([good, good], lambda *_: None, lambda: False)] == ["ok", "ok"]


def test_bad_families_in_a_run(tmp_path, monkeypatch):
    """Through MetaSchedule: every trial crashes its worker, every one is recorded, and a good run follows."""
    with monkeypatch.context() as patch:
        spoil(patch, str(task_for().space.defaults()["family"]), crash)
        found = tune(task_for(), 3, tmp_path)
    records = [r for r in RecordDatabase(tmp_path).load() if r.status != "schedule"]
    assert (found.trials, found.measured, found.results[0].failed) == (3, 3, 3)
    assert all(r.status == "run" and "SIGSEGV" in r.error and r.seconds_min is None for r in records)
    assert tune(task_for(), 2, tmp_path).record.status == "ok"


@pytest.mark.parametrize(("threads", "jobs", "width"), [(1, 8, 2), (1, 1, 1), (2, 8, 1)])
def test_two_workers_only_where_a_core_is_free(tmp_path, threads, jobs, width):
    if host().cores < 2:
        pytest.skip("this machine has one core")
    state = new_state(task_for(threads=threads), 0, [])
    record = None
    session = Session(RecordDatabase(tmp_path), [state], total=8, done=0, stamp=record)
    with open_lab(session, Limits(), host(), None, jobs) as lab:
        assert len(lab.lanes) == width and lab.in_turn


def test_nothing_is_measured_before_every_worker_has_started():
    order = []

    class Lane:
        def build(self, job):
            order.append("build")

        def measure(self, job):
            return Measurement("ok")

        def abort(self):
            raise AssertionError

    starting = [threading.Thread(target=lambda: (time.sleep(0.2), order.append("started"))) for _ in range(2)]
    for thread in starting:
        thread.start()
    Lab([Lane()], in_turn=True, starting=starting).run(["job"], lambda job, found: None, lambda: False)
    assert order == ["started", "started", "build"]


def test_linker_of_another_machine():
    assert linker_for(host())
    other = Hardware.load("neoverse_n1" if host().isa == "x86" else "cascade_lake")
    try:
        linker = linker_for(other)
    except BuildError as error:
        assert "apt-get install gcc-" in str(error)
        pytest.skip(str(error))
    _, func = prim_func(Request("matmul", 32, 32, 32), target_of(other, 1))
    made = export(tvm.ir.save_json(tvm.IRModule({"main": func})), target_dict(other, 1), linker)
    # ELF's e_machine: AArch64 or x86-64.
    assert made.library[:4] == b"\x7fELF" and made.library[18] == (183 if other.isa == "arm" else 62)
    assert len(made.params) == 3
