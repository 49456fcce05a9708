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


@pytest.mark.parametrize(
    ("shape", "groups", "channels"),
    [((2, 12, 7, 5), 3, 1), ((1, 320, 3, 5), 32, 1), ((2, 12), 3, 1), ((2, 7, 5, 12), 3, 3), ((1, 3, 5, 320), 32, 3)],
)
def test_group_norm_with_what_follows(shape: tuple[int, ...], groups: int, channels: int) -> None:
    axes = [n for n in range(1, len(shape)) if n != channels]
    x, g, b = random(*shape) + 300, random(shape[channels], seed=1), random(shape[channels], seed=2)

    def body(v: Any, s: Any, t: Any) -> Any:
        return nn.relu(nn.group_norm(v, s, t, groups, channels, axes))

    first = np.moveaxis(x, channels, 1)
    want = normed(first.reshape(shape[0], groups, -1)).reshape(first.shape)
    whole = np.maximum(np.moveaxis(want, 1, channels) * np.moveaxis(_wide(g, want), 1, channels) + np.moveaxis(
        _wide(b, want), 1, channels), 0)  # fmt: skip
    for threads in (1, 2):
        assert near(build(fused([shape, g.shape, b.shape], body), threads, rule=RULE)(x, g, b), whole, 2e-4)


def _wide(channel: np.ndarray, like: np.ndarray) -> np.ndarray:
    return channel.reshape(1, -1, *[1] * (like.ndim - 2))


@pytest.mark.parametrize(("shape", "axis"), [((6, 129), -1), ((3, 21, 2, 7), 1), ((3, 17), None), ((40,), 0)])
@pytest.mark.parametrize("kind", ["argmax", "argmin"])
def test_places_of_the_first_best_or_of_what_is_no_number(shape: tuple[int, ...], axis: int | None, kind: str) -> None:
    x = np.random.default_rng(0).integers(-3, 4, shape).astype("float32")
    if shape[0] == 6:
        x[1], x[2, 5:9], x[3], x[4, 100] = -np.inf, np.nan, np.inf, np.nan
        x[5], x[5, -1] = 0, -np.inf
    func = fused([shape], lambda v: getattr(op, kind)(v, axis))
    row = x.reshape([int(n) for n in func.params[0].shape])
    got = build(func, 2, rule=RULE)(row)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got.reshape(-1), getattr(np, kind)(x, axis).reshape(-1))


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_places_of_other_types(dtype: str) -> None:
    x = np.random.default_rng(0).integers(-128, 127, (5, 96)).astype(dtype)
    x[0] = -128
    func = fused([x.shape], lambda v: op.argmax(v, 1, True), [dtype])
    np.testing.assert_array_equal(build(func, rule=RULE)(x), x.argmax(1, keepdims=True))


def grouped(x: Any) -> Any:
    return nn.group_norm(op.reshape(x, (2, 3, 4, 96)), *(relax.const(np.ones(96, "float32")),) * 2, 8, 3, [1, 2])


@pytest.mark.parametrize("profile", ["host", "zen3"])
@pytest.mark.parametrize("body", [nn.softmax, lambda x: op.sum(x, [0]), lambda x: op.argmax(x, 1), grouped])
def test_every_decision_is_legal(profile: str, body: Any) -> None:
    task = make_task(fused([(24, 96)], body), Hardware.load(profile), 2)
    assert task is not None and task.rule.name == RULE
    for values in task.space.legal_points():
        build_schedule(task, values)
        assert task.rule.estimate(values, task.info, task.hardware) > 0
