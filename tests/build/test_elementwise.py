"""Functions without reductions by rule: numbers, layouts, odd extents, threads, and every legal decision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from fused import build, fused, near, random  # noqa: E402
from tvm import relax  # noqa: E402

from qimeng_tvm.hardware import Hardware  # noqa: E402
from qimeng_tvm.schedule.apply import build_schedule, make_task  # noqa: E402

op, nn = relax.op, relax.op.nn
RULE = "cpu.elementwise"
ERF = np.vectorize(math.erf)


def resized(x: relax.Expr) -> relax.Expr:
    return op.image.resize2d(
        x,
        (10, 10),
        layout="NHWC",
        method="nearest_neighbor",
        coordinate_transformation_mode="asymmetric",
        rounding_method="floor",
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shapes", "body", "oracle"),
    [
        ([(3, 5, 64)] * 2, lambda x, y: nn.relu(op.add(x, y)), lambda x, y: np.maximum(x + y, 0)),
        ([(9, 129), (129,)], op.add, lambda x, y: x + y),
        ([(4, 6, 48), (6, 1)], op.multiply, lambda x, y: x * y),
        ([(1009,)], nn.relu, lambda x: np.maximum(x, 0)),
        ([()], op.negative, lambda x: -x),
        ([(7,)], op.negative, lambda x: -x),
        ([(16, 100)], nn.gelu, lambda x: x * 0.5 * (1 + ERF(x * 0.5**0.5))),
        ([(2, 12, 5, 64)], lambda x: op.permute_dims(x, [0, 2, 1, 3]), lambda x: x.transpose(0, 2, 1, 3)),
        ([(64, 96)], op.permute_dims, lambda x: x.T),
        ([(77, 131)], op.permute_dims, lambda x: x.T),
        ([(2, 3, 9, 11)], lambda x: op.permute_dims(x, [0, 2, 3, 1]), lambda x: x.transpose(0, 2, 3, 1)),
        ([(2, 9, 11, 40)], lambda x: op.permute_dims(x, [0, 3, 1, 2]), lambda x: x.transpose(0, 3, 1, 2)),
        (
            [(2, 5, 64), (2, 5, 41), (2, 5, 7)],
            lambda x, y, z: nn.relu(op.concat([x, y, z], 2)),
            lambda x, y, z: np.maximum(np.concatenate([x, y, z], 2), 0),
        ),
        ([(2, 8, 33)], lambda x: nn.pad(x, [0, 0, 1, 2, 3, 4]), lambda x: np.pad(x, [(0, 0), (1, 2), (3, 4)])),
        ([(8, 90)], lambda x: op.strided_slice(x, [0, 1], [1, 3], [8, 80], [2, 3]), lambda x: x[1:8:2, 3:80:3]),
        ([(1, 5, 5, 24)], resized, lambda x: x.repeat(2, 1).repeat(2, 2)),
    ],
)
def test_right(shapes: list[tuple[int, ...]], body: Any, oracle: Any, threads: int) -> None:
    inputs = [random(*shape, seed=n) if shape else np.float32(3) * np.ones(()) for n, shape in enumerate(shapes)]
    inputs = [x.astype("float32") for x in inputs]
    built = build(fused(shapes, body), threads, rule=RULE, values={"threads": threads})
    assert near(built(*inputs), oracle(*(x.astype("float64") for x in inputs)))
    assert built.library_calls() == []


def test_conversion() -> None:
    x = random(5, 40)
    got = build(fused([x.shape], lambda v: op.astype(v, "float16")), rule=RULE)(x)
    assert (got == x.astype("float16")).all()


def test_small_functions_are_not_shared_out() -> None:
    func = fused([(64, 64)], nn.relu)
    task = make_task(func, Hardware.load("zen5"), 2)
    assert task is not None and task.space.defaults()["threads"] == 1
    task = make_task(fused([(1024, 4096)], nn.relu), Hardware.load("zen5"), 2)
    assert task is not None and task.space.defaults()["threads"] == 2


@pytest.mark.parametrize("profile", ["host", "zen3"])
@pytest.mark.parametrize("body", [nn.gelu, op.permute_dims])
def test_every_decision_is_legal(profile: str, body: Any) -> None:
    task = make_task(fused([(24, 96)], body), Hardware.load(profile), 2)
    assert task is not None and task.rule.name == RULE
    for values in task.space.legal_points():
        build_schedule(task, values)
        assert task.rule.estimate(values, task.info, task.hardware) > 0
