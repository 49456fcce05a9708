"""What a model is told of trials, from real machine code."""

import pytest

from qimeng_tvm.api import task_of
from qimeng_tvm.generate.history import history_of, spills_in
from qimeng_tvm.hardware import host
from qimeng_tvm.request import parse


@pytest.fixture(scope="module")
def task():
    return task_of(parse("f32 GEMM 64x96x64"), host(), 1)


def test_spills_are_counted_in_the_machine_code(task):
    assert spills_in(task, task.space.defaults()) == 0
    assert spills_in(task, {**task.space.defaults(), "micro_kernel": "no such"}) is None


def test_the_fastest_and_the_slowest_are_looked_at(task):
    values = task.space.defaults()
    slow = {**values, "unroll": 1 if values["unroll"] != 1 else 2}
    history = history_of(task, [(values, 1e-5), (slow, 2e-5)])
    assert history.trials == 2 and len(history.points) == 2
    for point in history.points:
        assert any("spills in the inner loop" in line for line in point.limits)
        assert any(line.endswith("of the registers") for line in point.limits)
    assert history.points[0].values == values and history.points[1].values == {"unroll": slow["unroll"]}
