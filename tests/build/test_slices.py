"""Attention a head at a time: right, one function, and left alone where slices cannot be had or are of no use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import relax, te, tirx  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm import Pipeline  # noqa: E402
from qimeng_tvm.hardware import Hardware, host, target_of  # noqa: E402
from qimeng_tvm.model_tuning import tune_model  # noqa: E402
from qimeng_tvm.relax.functions import functions_in  # noqa: E402
from qimeng_tvm.relax.report import RECORD, PipelineReport  # noqa: E402
from qimeng_tvm.relax.slicing import together_of  # noqa: E402
from qimeng_tvm.schedule.slices import cut  # noqa: E402

op = relax.op
WIDTH = 16


def attention(
    batch: int,
    rows: int,
    heads: int,
    *,
    kept: int = 0,
    mask: bool = False,
    causal: str | None = None,
    tell: bool = False,
) -> tvm.IRModule:
    """Queries (b, s, h * d), keys and values (b, s, kv * d), and what is added to the scores; these may be told."""
    builder, kept = relax.BlockBuilder(), kept or heads
    shapes = [(batch, rows, n * WIDTH) for n in (heads, kept, kept)]
    params = [relax.Var(n, R.Tensor(s, "float32")) for n, s in zip("qkv", shapes, strict=True)]
    params += [relax.Var("m", R.Tensor((batch, 1, rows, rows), "float32"))] if mask else []
    with builder.function("main", params):
        with builder.dataflow():
            q, k, v = (
                builder.emit(op.reshape(x, (batch, rows, n, WIDTH)))
                for x, n in zip(params, (heads, kept, kept), strict=False)
            )
            if tell:
                q, k, v = (builder.emit(op.permute_dims(x, [0, 2, 1, 3])) for x in (q, k, v))
                scores = builder.emit(op.matmul(q, builder.emit(op.permute_dims(k, [0, 1, 3, 2]))))
                out = builder.emit(op.matmul(builder.emit(op.nn.softmax(scores, -1)), v))
                result = builder.emit_output(relax.Tuple([out, scores]))
            else:
                out = builder.emit(op.nn.attention(q, k, v, params[3] if mask else None, causal_mask=causal))
                result = builder.emit_output(op.reshape(out, (batch, rows, heads * WIDTH)))
        builder.emit_func_output(result)
    return builder.finalize()


def inputs_of(batch: int, rows: int, heads: int, *, kept: int = 0, mask: bool = False, **_: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(batch * rows * heads)
    found = [rng.standard_normal((batch, rows, n * WIDTH), "float32") for n in (heads, kept or heads, kept or heads)]
    return [*found, rng.standard_normal((batch, 1, rows, rows), "float32")] if mask else found


def wanted(inputs: list[np.ndarray], *, causal: str | None = None, **_: Any) -> np.ndarray:
    q, k, v = (x.astype("float64").reshape(*x.shape[:2], -1, WIDTH).transpose(0, 2, 1, 3) for x in inputs[:3])
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(WIDTH) + (inputs[3] if len(inputs) > 3 else 0.0)
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    power = np.exp(scores - scores.max(-1, keepdims=True))
    out = (power / power.sum(-1, keepdims=True)) @ v
    return out.transpose(0, 2, 1, 3).reshape(out.shape[0], out.shape[2], -1)


def build(module: tvm.IRModule, threads: int, **options: Any) -> tuple[Any, PipelineReport]:
    passes = Pipeline(threads=threads, **options)
    executable = relax.build(module, target_of(host(), threads), relax_pipeline=passes)
    assert passes.report is not None
    return relax.VirtualMachine(executable, tvm.cpu())["main"], passes.report


CASES = [
    {"batch": 1, "rows": 37, "heads": 3},
    {"batch": 2, "rows": 20, "heads": 4, "mask": True},
    {"batch": 1, "rows": 24, "heads": 6, "kept": 2, "causal": "TopLeft"},
    {"batch": 2, "rows": 24, "heads": 4, "kept": 1, "mask": True},
    {"batch": 2, "rows": 24, "heads": 4, "kept": 2, "mask": True},
    {"batch": 1, "rows": 1024, "heads": 1},  # by rows alone
    {"batch": 1, "rows": 768, "heads": 2, "mask": True},  # by heads and rows
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_and_one_function(case: dict[str, Any], threads: int) -> None:
    if threads > host().cores:
        pytest.skip(f"{threads} cores are needed")
    run, report = build(attention(**case), threads)
    arrays = inputs_of(**case)
    found = run(*(tvm.runtime.tensor(x) for x in arrays)).numpy()
    np.testing.assert_allclose(found, wanted(arrays, **case), rtol=1e-4, atol=1e-5)
    (function,) = report.functions
    assert function.operator.startswith("attention ") and function.tensorized and not function.why
    batch, rows, heads = case["batch"], case["rows"], case["heads"]
    assert function.flops >= 4 * batch * heads * rows * rows * WIDTH


def test_what_is_kept_of_a_slice_fits_the_second_level_cache() -> None:
    fused = Pipeline(threads=1).fused(attention(1, 1024, 2))
    found = [t for f in fused.functions.values() if isinstance(f, tirx.PrimFunc) for t in [together_of(f)] if t]
    (together,) = found
    _, columns = (int(x) for x in together.parts[0].params[-1].shape[-2:])
    rows = int(together.parts[0].params[-1].shape[-2])
    assert columns == 1024 and rows < 1024 and 2 * 4 * rows * columns <= host().cache(2).size
    assert together.slices == 2 * 1024 // rows


def test_scores_that_something_else_reads_stay_apart() -> None:
    module = attention(1, 20, 4, tell=True)
    run, report = build(module, 1)
    assert len(report.functions) >= 3 and not any(f.operator.startswith("attention") for f in report.functions)
    arrays = inputs_of(1, 20, 4)
    out, scores = run(*(tvm.runtime.tensor(x) for x in arrays))
    assert scores.shape == (1, 4, 20, 20) and np.isfinite(out.numpy()).all()


def test_fewer_slices_than_cores_stay_apart() -> None:
    machine = Hardware.load("zen5")
    for heads, sliced in ((1, False), (4, True)):
        fused = Pipeline(hardware=machine, threads=4).fused(attention(1, 20, heads))
        whole = [f for f in fused.functions.values() if isinstance(f, tirx.PrimFunc) and together_of(f)]
        assert bool(whole) is sliced


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_are_tuned_and_records_found(tmp_path: Any, threads: int) -> None:
    if threads > host().cores:
        pytest.skip(f"{threads} cores are needed")
    module = attention(1, 20, 4)
    parts = functions_in(Pipeline(threads=threads).fused(module), host(), threads)
    assert [f.calls for f in parts] == [4 // threads] * 3
    assert all(f.task is not None and f.task.info.threads == 1 for f in parts)
    tuned = tune_model(module, trials=3, threads=threads, database=tmp_path)
    assert sorted(f.result.measured for f in tuned.functions) == [1, 1, 1]
    run, report = build(module, threads, database=tmp_path)
    assert [f.source for f in report.functions] == [RECORD]
    arrays = inputs_of(1, 20, 4)
    found = run(*(tvm.runtime.tensor(x) for x in arrays)).numpy()
    np.testing.assert_allclose(found, wanted(arrays), rtol=1e-4, atol=1e-5)


def _function(body: Any, *shapes: tuple[int, ...]) -> tirx.PrimFunc:
    tensors = [te.placeholder(s, "float32", f"x{n}") for n, s in enumerate(shapes)]
    return te.create_prim_func([*tensors, body(*tensors)])


def test_a_cut_follows_an_axis_to_where_it_is() -> None:
    def body(x: Any, y: Any) -> Any:
        first = te.compute((8, 6), lambda i, j: x[j, i] + y[i], name="first")
        return te.compute((6, 8), lambda i, j: first[j, i] * 2.0, name="second")

    sliced, found = cut(_function(body, (6, 8), (8,)), 2, 1, 2) or pytest.fail("it can be cut")
    assert dict(found.places) == {0: 1, 1: 0, 2: 1} and found.slices == 4
    assert [[int(x) for x in p.shape] for p in sliced.params] == [[6, 2], [2], [6, 2]]


@pytest.mark.parametrize(
    ("body", "shape", "axis"),
    [
        (lambda x: te.compute((6, 8), lambda i, j: x[i, (j + 1) % 8]), (6, 8), 1),  # neighbours
        (lambda x: te.compute((6, 8), lambda i, j: x[i, j] + tirx.Cast("float32", j)), (6, 8), 1),  # its place is used
        (lambda x: te.compute((8, 8), lambda i, j: x[i, j] + x[j, i]), (8, 8), 0),  # two axes of one tensor
        (lambda x: te.compute((8,), lambda i: x[i, i]), (8, 8), 0),  # a diagonal
    ],
)
def test_what_cannot_be_cut_is_refused(body: Any, shape: tuple[int, ...], axis: int) -> None:
    func = _function(body, shape)
    assert cut(func, 1, axis, 1) is None


def test_a_reduced_axis_is_refused() -> None:
    def body(x: Any) -> Any:
        k = te.reduce_axis((0, 8), "k")
        return te.compute((6,), lambda i: te.sum(x[i, k], axis=k))

    assert cut(_function(body, (6, 8)), 0, 1, 1) is None
    assert cut(_function(body, (6, 8)), 0, 0, 1) is not None
