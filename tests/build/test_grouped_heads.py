"""Attention with fewer heads of keys and values than of queries: right, and nothing is copied for each query head."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import relax, tirx  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm import Pipeline  # noqa: E402
from qimeng_tvm.hardware import host, target_of  # noqa: E402
from qimeng_tvm.relax.prepare import legalize_and_fuse  # noqa: E402
from qimeng_tvm.relax.report import FALLBACK  # noqa: E402

op = relax.op
BATCH, HEADS, KEPT, WIDTH = 2, 6, 2, 8
GROUP = HEADS // KEPT


def attention(repeat: str, rows: int, keys: int, *, flat: bool, mask: bool) -> tvm.IRModule:
    """Queries (b, s, h * d), keys and values (b, t, kv * d), as a model has them after its projections."""
    builder = relax.BlockBuilder()
    emit = builder.emit
    shapes = [(BATCH, rows, HEADS * WIDTH), *[(BATCH, keys, KEPT * WIDTH)] * 2]
    params = [relax.Var(n, R.Tensor(s, "float32")) for n, s in zip("qkv", shapes, strict=True)]
    params += [relax.Var("m", R.Tensor((BATCH, 1, rows, keys), "float32"))] if mask else []

    def heads(x: Any, extent: int, count: int) -> Any:
        return emit(op.permute_dims(emit(op.reshape(x, (BATCH, extent, count, WIDTH))), [0, 2, 1, 3]))

    def repeated(x: Any) -> Any:
        if repeat == "repeat":
            return emit(op.repeat(x, GROUP, 1))
        wide = emit(op.broadcast_to(emit(op.expand_dims(x, 2)), (BATCH, KEPT, GROUP, keys, WIDTH)))
        return emit(op.reshape(wide, (BATCH, HEADS, keys, WIDTH)))

    def plane(x: Any, *extents: int) -> Any:
        return emit(op.reshape(x, (BATCH * HEADS, *extents))) if flat else x

    with builder.function("main", params):
        with builder.dataflow():
            q = heads(params[0], rows, HEADS)
            k, v = (repeated(heads(x, keys, KEPT)) for x in params[1:3])
            k = emit(op.multiply(emit(op.permute_dims(k, [0, 1, 3, 2])), relax.const(0.25, "float32")))
            scores = emit(op.matmul(plane(q, rows, WIDTH), plane(k, WIDTH, keys)))
            scores = emit(op.reshape(scores, (BATCH, HEADS, rows, keys)))
            scores = emit(op.add(scores, params[3])) if mask else scores
            weights = emit(op.nn.softmax(scores, -1))
            out = emit(op.matmul(plane(weights, rows, keys), plane(v, keys, WIDTH)))
            out = emit(op.permute_dims(emit(op.reshape(out, (BATCH, HEADS, rows, WIDTH))), [0, 2, 1, 3]))
            result = builder.emit_output(op.reshape(out, (BATCH, rows, HEADS * WIDTH)))
        builder.emit_func_output(result)
    return builder.finalize()


def wanted(q: np.ndarray, k: np.ndarray, v: np.ndarray, m: Any = 0.0, scale: float = 0.25) -> np.ndarray:
    q, k, v = (x.astype("float64").reshape(*x.shape[:2], -1, WIDTH).transpose(0, 2, 1, 3) for x in (q, k, v))
    k, v = (np.repeat(x, HEADS // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(0, 1, 3, 2) * scale + m
    power = np.exp(scores - scores.max(-1, keepdims=True))
    out = power / power.sum(-1, keepdims=True) @ v
    return out.transpose(0, 2, 1, 3).reshape(out.shape[0], out.shape[2], -1)


def written(module: tvm.IRModule) -> list[int]:
    """How many elements each function writes."""
    fused = legalize_and_fuse(module, target_of(host(), 1))
    funcs = [f for f in fused.functions.values() if isinstance(f, tirx.PrimFunc)]
    return [int(np.prod([int(x) for x in f.params[-1].shape])) for f in funcs]


def run(module: tvm.IRModule, *inputs: np.ndarray) -> np.ndarray:
    passes = Pipeline(threads=1)
    executable = relax.build(module, target_of(host(), 1), relax_pipeline=passes)
    assert passes.report is not None and not [f.name for f in passes.report.functions if f.source == FALLBACK]
    return relax.VirtualMachine(executable, tvm.cpu())["main"](*(tvm.runtime.tensor(x) for x in inputs)).numpy()


@pytest.mark.parametrize(
    ("repeat", "rows", "flat", "mask"),
    [("expand", 5, True, True), ("expand", 1, True, True), ("repeat", 5, False, False), ("repeat", 1, False, False)],
)
def test_products_are_taken_on_the_heads_that_there_are(repeat: str, rows: int, flat: bool, mask: bool) -> None:
    keys = 40
    module = attention(repeat, rows, keys, flat=flat, mask=mask)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(p, dtype="float32") for p in _shapes(rows, keys, mask)]
    np.testing.assert_allclose(run(module, *inputs), wanted(*inputs), rtol=1e-4, atol=1e-5)
    # Keys and values of all query heads, BATCH * HEADS * keys * WIDTH, are written nowhere.
    assert max(written(module)) <= BATCH * max(KEPT * keys * WIDTH, HEADS * rows * max(keys, WIDTH))


def _shapes(rows: int, keys: int, mask: bool) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(BATCH, rows, HEADS * WIDTH), *[(BATCH, keys, KEPT * WIDTH)] * 2]
    return [*shapes, (BATCH, 1, rows, keys)] if mask else shapes


def test_one_head_for_all() -> None:
    shape, one = (BATCH, HEADS, 4, WIDTH), (BATCH, 1, WIDTH, 16)
    builder = relax.BlockBuilder()
    q, k = relax.Var("q", R.Tensor(shape, "float32")), relax.Var("k", R.Tensor(one, "float32"))
    with builder.function("main", [q, k]):
        with builder.dataflow():
            wide = builder.emit(op.broadcast_to(k, (BATCH, HEADS, WIDTH, 16)))
            out = builder.emit_output(op.matmul(q, wide))
        builder.emit_func_output(out)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(shape, dtype="float32"), rng.standard_normal(one, dtype="float32")
    np.testing.assert_allclose(run(builder.finalize(), a, b), a @ b, rtol=1e-4, atol=1e-5)
    assert not re.search("broadcast", str(legalize_and_fuse(builder.get(), target_of(host(), 1)).script()))


@pytest.mark.parametrize("kept", [KEPT, 1])
def test_the_operator_of_attention(kept: int) -> None:
    builder = relax.BlockBuilder()
    shapes = [(1, 5, HEADS, WIDTH), (1, 7, kept, WIDTH), (1, 7, kept, WIDTH)]
    params = [relax.Var(n, R.Tensor(s, "float32")) for n, s in zip("qkv", shapes, strict=True)]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(op.nn.attention(*params, scale=0.25))
        builder.emit_func_output(out)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s, dtype="float32") for s in shapes]
    found = run(builder.finalize(), *inputs)
    want = wanted(*(x.reshape(1, x.shape[1], -1) for x in inputs))
    np.testing.assert_allclose(found.reshape(want.shape), want, rtol=1e-4, atol=1e-5)
