"""Schedules that runs ended with, compiled and timed again."""

import pytest

from qimeng_tvm.api import task_of
from qimeng_tvm.bench.settle import timed
from qimeng_tvm.hardware import host
from qimeng_tvm.request import parse


@pytest.mark.parametrize("line", ["f32 GEMM 64x96x64", "f32 GEMM 16x64x48 with weights"])
def test_every_schedule_has_a_speed_and_what_is_unknown_none(line):
    values = task_of(parse(line), host(), 1).space.defaults()
    keys = [tuple(sorted({**values, "unroll": u}.items())) for u in (1, 2)]
    unknown = tuple(sorted({**values, "family": "x86.none.gemm"}.items()))
    found = timed(line, [*keys, unknown], host())
    assert set(found) == set(keys) and all(speed > 0 for speed in found.values())
