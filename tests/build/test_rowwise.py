"""Softmax, norms and means by rule: numbers, odd lengths, masks, threads, and every legal decision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from fused import build, fused, near, random  # noqa: E402
from tvm import relax  # noqa: E402

from qimeng_tvm.hardware import Hardware  # noqa: E402
from qimeng_tvm.schedule.apply import build_schedule, make_task  # noqa: E402

op, nn = relax.op, relax.op.nn
RULE = "cpu.rowwise"


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    x = x.astype("float64")
    power = np.exp(x - np.maximum(x.max(axis, keepdims=True), -3.4e38))
    return power / power.sum(axis, keepdims=True)


def normed(x: np.ndarray, axes: Any = -1) -> np.ndarray:
    x = x.astype("float64")
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("columns", [1, 7, 64, 129, 197, 1000])
def test_softmax(columns: int, threads: int) -> None:
    x = random(3, 5, columns)
    built = build(fused([x.shape], lambda v: nn.softmax(v, -1)), threads, rule=RULE)
    assert near(built(x), softmax(x))
    assert built.library_calls() == []


def test_softmax_of_masks() -> None:
    x = random(4, 130)
    x[0, 3:] = -np.inf
    x[1] *= 1e4
    x[2, 5] = np.nan
    x[3] = -np.inf
    with np.errstate(invalid="ignore"):
        want = softmax(x)
    assert near(build(fused([x.shape], nn.softmax), rule=RULE)(x), want)


@pytest.mark.parametrize("columns", [7, 129, 768])
def test_layer_norm(columns: int) -> None:
    x, g, b = random(2, 5, columns), random(columns, seed=1), random(columns, seed=2)
    func = fused([x.shape, g.shape, b.shape], lambda v, s, t: nn.layer_norm(v, s, t, [-1]))
    assert near(build(func, rule=RULE)(x, g, b), normed(x) * g + b)


def test_rms_norm_is_no_product() -> None:
    x, g = random(6, 96), random(96, seed=1)
    func = fused([x.shape, g.shape], lambda v, s: nn.rms_norm(v, s, [-1]))
    want = x / np.sqrt(np.square(x.astype("float64")).mean(-1, keepdims=True) + 1e-5) * g
    assert near(build(func, rule=RULE)(x, g), want)


@pytest.mark.parametrize("side", [7, 14])
def test_instance_norm_keeps_its_digits(side: int) -> None:
    """Far from zero, a difference of squares has no digits left."""
    x, g, b = random(2, 5, side, side) + 300, random(5, seed=1), random(5, seed=2)
    func = fused([x.shape, g.shape, b.shape], lambda v, s, t: nn.instance_norm(v, s, t, 1, [2, 3]))
    want = normed(x, (2, 3)) * g[:, None, None] + b[:, None, None]
    assert near(build(func, rule=RULE)(x, g, b), want, 1e-4)


@pytest.mark.parametrize(
    ("shape", "body", "oracle"),
    [
        ((2, 7, 7, 64), lambda x: op.mean(x, [1, 2]), lambda x: x.mean((1, 2))),
        ((2, 7, 7, 77), lambda x: op.mean(x, [1, 2]), lambda x: x.mean((1, 2))),
        ((2, 3, 7, 7), lambda x: op.mean(x, [2, 3]), lambda x: x.mean((2, 3))),
        ((2, 10, 6, 14), lambda x: nn.softmax(x, 1), lambda x: softmax(x, 1)),
        ((5, 131), nn.log_softmax, lambda x: np.log(softmax(x))),
        ((5, 96), lambda x: op.variance(x, [-1]), lambda x: x.var(-1)),
        ((5, 33), lambda x: op.max(x, [-1]), lambda x: x.max(-1)),
        ((4, 7, 33), lambda x: op.min(x, [1], keepdims=True), lambda x: x.min(1, keepdims=True)),
        ((5, 96), op.sum, lambda x: x.sum()),
        ((6, 40), lambda x: nn.relu(op.negative(nn.softmax(x))), np.zeros_like),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_reductions(shape: tuple[int, ...], body: Any, oracle: Any, threads: int) -> None:
    x = random(*shape)
    got = build(fused([shape], body), threads, rule=RULE, values={"threads": threads})(x)
    assert near(got, oracle(x.astype("float64")), 2e-5)


@pytest.mark.parametrize("profile", ["host", "zen3"])
@pytest.mark.parametrize("body", [nn.softmax, lambda x: op.sum(x, [0])])
def test_every_decision_is_legal(profile: str, body: Any) -> None:
    task = make_task(fused([(24, 96)], body), Hardware.load(profile), 2)
    assert task is not None and task.rule.name == RULE
    for values in task.space.legal_points():
        build_schedule(task, values)
        assert task.rule.estimate(values, task.info, task.hardware) > 0
