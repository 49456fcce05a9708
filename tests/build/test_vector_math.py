"""Polynomials for elementary functions: accuracy, ranges, and no call of the C library in vector code."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from fused import build, fused, near, random  # noqa: E402
from tvm import relax, s_tir, te, tirx  # noqa: E402

from qimeng_tvm import lowering  # noqa: E402
from qimeng_tvm.hardware import Hardware, target_of  # noqa: E402

nn = relax.op.nn
ERF = np.vectorize(math.erf)
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 88.72, 88.73, -86.9, -1e30, 1e30, 1e-40], "float32")


def compute(function: Callable[[Any], Any], x: np.ndarray, dtype: str = "float32") -> np.ndarray:
    a = te.placeholder(x.shape, dtype)
    sch = s_tir.Schedule(te.create_prim_func([a, te.compute(x.shape, lambda i: function(a[i]))]))
    block = sch.get_child_blocks(sch.get_sblock("root"))[0]
    _, inner = sch.split(sch.get_loops(block)[0], [None, 16])
    sch.vectorize(inner)
    target = target_of(Hardware.host(1), 1)
    library = lowering.build(tvm.IRModule({"main": sch.mod["main"]}), target)
    out = tvm.runtime.empty(x.shape, dtype)
    library["main"](tvm.runtime.tensor(x.astype(dtype)), out)
    return out.numpy()


@pytest.mark.parametrize(
    ("function", "oracle", "low", "high", "relative", "absolute"),
    [
        (tirx.exp, np.exp, -86.9, 88.7, 2e-7, 0),
        (tirx.log, np.log, 1e-3, 1e3, 2e-7, 1e-7),
        (tirx.tanh, np.tanh, -10, 10, 4e-7, 0),
        (tirx.erf, ERF, -5, 5, 5e-7, 0),
        (tirx.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -80, 80, 4e-7, 0),
        (lambda x: tirx.power(x, tirx.const(2.0, "float32")), np.square, -9, 9, 2e-7, 0),
    ],
)
def test_accuracy(function: Any, oracle: Any, low: float, high: float, relative: float, absolute: float) -> None:
    x = np.random.default_rng(0).uniform(low, high, 4096).astype("float32")
    want = oracle(x.astype("float64"))
    assert (np.abs(compute(function, x) - want) <= relative * np.abs(want) + absolute).all()


@pytest.mark.parametrize(("function", "oracle"), [(tirx.exp, np.exp), (tirx.log, np.log), (tirx.tanh, np.tanh)])
def test_special_values(function: Any, oracle: Any) -> None:
    with np.errstate(all="ignore"):
        want = oracle(SPECIAL.astype("float64")).astype("float32")
    assert near(compute(function, np.resize(SPECIAL, 32))[: len(SPECIAL)], want)


def test_exp_ends_in_zero_and_infinity() -> None:
    got = compute(tirx.exp, np.resize(np.array([-88, -1e4, -np.inf, 89, 1e4], "float32"), 16))[:5]
    assert (got == [0, 0, 0, np.inf, np.inf]).all()


@pytest.mark.parametrize("dtype", ["float16"])
def test_narrow_types_are_rounded_once(dtype: str) -> None:
    x = np.linspace(-8, 8, 64).astype(dtype)
    want = np.exp(x.astype("float64")).astype(dtype)
    assert (np.abs(compute(tirx.exp, x, dtype) - want) <= np.spacing(want)).all()


@pytest.mark.parametrize(
    ("activation", "oracle"),
    [
        (nn.gelu, lambda y: y * 0.5 * (1 + ERF(y * 0.5**0.5))),
        (nn.gelu_tanh, lambda y: y * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))),
        (nn.silu, lambda y: y / (1 + np.exp(-y))),
    ],
)
@pytest.mark.parametrize(("m", "n"), [(32, 96), (33, 100)])
def test_epilogues_of_products_call_no_library(activation: Any, oracle: Any, m: int, n: int) -> None:
    func = fused([(m, 64), (64, n), (n,)], lambda x, w, b: activation(relax.op.add(relax.op.matmul(x, w), b)))
    built = build(func, rule="cpu.gemm")
    x, w, b = random(m, 64), random(64, n, seed=1), random(n, seed=2)
    assert near(built(x, w, b), oracle(x.astype("float64") @ w + b), 2e-5)
    assert built.library_calls() == []


def test_branches_keep_their_loads() -> None:
    """A value behind a condition may lie outside its tensor: it must not be computed before the condition."""
    func = fused([(4, 64), (4, 40)], lambda x, y: nn.silu(relax.op.concat([x, y], 1)))
    x, y = random(4, 64), random(4, 40, seed=1)
    both = np.concatenate([x, y], 1).astype("float64")
    assert near(build(func, rule="cpu.elementwise")(x, y), both / (1 + np.exp(-both)))
