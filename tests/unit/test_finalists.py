"""The fastest candidates are timed again in turns; here by formula."""

from dataclasses import replace

import pytest

from qimeng_tvm.api import task_of
from qimeng_tvm.hardware import host
from qimeng_tvm.request import parse
from qimeng_tvm.schedule.apply import build_schedule
from qimeng_tvm.search import Record, RecordDatabase
from qimeng_tvm.search.finalists import FINALISTS, ROUNDS, finalists, time_finalists
from qimeng_tvm.search.measure import Lab
from qimeng_tvm.search.records import rule_id, schedule_key
from qimeng_tvm.search.session import Measurement, Session, new_state


@pytest.fixture(scope="module")
def task():
    return task_of(parse("f32 GEMM 64x96x64"), host(), 1)


class Bench:
    """Gives what a point really takes, not what its first timing said."""

    def __init__(self, real):
        self.real, self.asked = real, []

    def measure(self, job):
        values = dict(job.trial.values)
        self.asked.append(values["unroll"])
        return self.real(values)


def run(task, folder, first, real):
    """Record first times by unroll (the default's is the analytic one), then settle; return records and turns."""
    default = task.space.defaults()
    database = RecordDatabase(folder)
    state = new_state(task, 0, [])
    for unroll, seconds in first.items():
        values = {**default, "unroll": unroll}
        database.append(
            Record(
                state.workload,
                task.hardware.fingerprint,
                rule_id(task),
                values,
                seconds_min=seconds,
                seconds_median=seconds,
                gflops=1 / seconds,
                schedule=schedule_key(build_schedule(task, values).mod),
            )
        )
    state.measured = len(first)
    session = Session(database, [state], total=9, done=0, stamp=Record("", "", "", {}))
    bench = Bench(real)
    time_finalists(state, Lab([bench], in_turn=True), session)
    return database, bench.asked, session


def test_the_luckiest_is_not_the_fastest(task, tmp_path):
    default = task.space.defaults()["unroll"]
    other = next(u for u in (1, 2, 4) if u != default)
    real = {default: 1.0, other: 1.5}
    database, asked, _ = run(
        task, tmp_path, {default: 1.1, other: 0.9}, lambda v: Measurement("ok", real[v["unroll"]], 2.0, 3.0)
    )
    assert asked == [other, default] * ROUNDS  # by turns
    best = database.best(task, verified_only=False)
    assert best.decisions["unroll"] == default and (best.seconds_min, best.gflops) == (1.0, 3.0)
    assert {r.seconds_min for r in database.of_task(task)} == {1.0, 1.5}


def test_wrong_numbers_at_the_end_are_recorded(task, tmp_path):
    default = task.space.defaults()["unroll"]
    other = next(u for u in (1, 2, 4) if u != default)

    def real(values):
        return Measurement("ok", 1.0, 1.0, 1.0) if values["unroll"] == default else Measurement("numbers", error="off")

    database, _, _ = run(task, tmp_path, {default: 1.1, other: 0.9}, real)
    assert database.best(task, verified_only=False).decisions["unroll"] == default
    assert [r.error for r in database.of_task(task) if r.status == "numbers"] == ["off"]


def test_a_stopped_run_leaves_the_records(task, tmp_path):
    default = task.space.defaults()["unroll"]
    database, asked, _ = run(task, tmp_path, {default: 1.1}, lambda v: None)
    assert len(asked) == 1 and [r.seconds_min for r in database.of_task(task)] == [1.1]


def test_finalists_are_the_fastest_and_the_analytic_decisions():
    default = {"x": 0}
    records = [
        Record("w", "f", "r", {"x": x}, seconds_min=s) for x, s in ((0, 9.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0))
    ]
    lost = [
        replace(records[1], decisions={"x": 7}, status="run", seconds_min=None),
        Record("w", "f", "r", {"y": 1}, seconds_min=0.1),
    ]
    found = finalists([*records, *lost], default)
    assert [r.decisions["x"] for r in found] == [1, 2, 3, 0] and len(found) == FINALISTS + 1
