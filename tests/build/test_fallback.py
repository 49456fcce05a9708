"""What no rule serves is scheduled block by block, and stays what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from fused import build, fused, near, random  # noqa: E402
from tvm import relax, tirx  # noqa: E402

from qimeng_tvm.schedule import fallback  # noqa: E402

op, nn = relax.op, relax.op.nn
INDICES = np.array([[0, 3, 6], [5, 1, 2]])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("inputs", "body", "oracle"),
    [
        ([random(64, 300)], lambda x: op.argmax(x, -1), lambda x: x.argmax(-1)),
        (
            [random(16, 32, 48), random(48, 32, 8)],
            lambda x, y: op.einsum((x, y), "abc,cbd->ad"),
            lambda x, y: np.einsum("abc,cbd->ad", x, y),
        ),
        ([random(7, 40), INDICES], lambda x, i: op.take(x, i, 0), lambda x, i: x[i]),
        (
            [random(2, 8, 6, 6), random(8), random(8)],
            lambda x, g, b: nn.group_norm(x, g, b, 1, 1, [2, 3]),
            lambda x, g, b: (
                ((x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5))
                * g[:, None, None]
                + b[:, None, None]
            ),
        ),
        ([random(300, 200)], nn.softmax, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    ],
)
def test_right(inputs: list[np.ndarray], body: Any, oracle: Any, threads: int) -> None:
    func = fused([x.shape for x in inputs], body, [str(x.dtype) for x in inputs])
    want = oracle(*(x.astype("float64") if x.dtype.kind == "f" else x for x in inputs))
    assert near(build(func, threads)(*inputs), want, 3e-5)


def test_symbolic_shapes() -> None:
    func = fused([(tirx.Var("n", "int64"), 64)], nn.gelu)
    changed = fallback.schedule(func, 2)
    assert "T.parallel" in changed.script() and "T.vectorized" in changed.script()
    built = build(func, 2)
    x, out = random(33, 64), tvm.runtime.empty((33, 64), "float32")
    built.library["main"](tvm.runtime.tensor(x), out)
    assert near(out.numpy(), build(fused([x.shape], nn.gelu))(x))
    assert built.library_calls() == []


def test_what_cannot_be_read_comes_back() -> None:
    func = fused([(4, 4)], nn.relu).with_body(tirx.Evaluate(tirx.const(0, "int32")))
    assert fallback.schedule(func, 2).body.same_as(func.body)
