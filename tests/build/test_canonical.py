"""Operators as later passes can take them: a tensor times itself, largest elements, axes that are dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import relax  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm import Pipeline  # noqa: E402
from qimeng_tvm.hardware import host, target_of  # noqa: E402
from qimeng_tvm.relax.report import FALLBACK  # noqa: E402

op = relax.op


def run(body: Any, *inputs: np.ndarray) -> Any:
    """What a model computes; a rule must serve all of it."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{n}", R.Tensor(x.shape, str(x.dtype))) for n, x in enumerate(inputs)]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(builder.normalize(body(builder.emit, *params)))
        builder.emit_func_output(out)
    passes = Pipeline(threads=1)
    executable = relax.build(builder.finalize(), target_of(host(), 1), relax_pipeline=passes)
    assert passes.report is not None and not [f.name for f in passes.report.functions if f.source == FALLBACK]
    found = relax.VirtualMachine(executable, tvm.cpu())["main"](*(tvm.runtime.tensor(x) for x in inputs))
    return found.numpy() if hasattr(found, "numpy") else [x.numpy() for x in found]


@pytest.mark.parametrize("transposed", [True, False])
def test_a_product_of_a_tensor_with_itself_and_what_follows(transposed: bool) -> None:
    x = np.random.default_rng(0).standard_normal((3, 24, 24), dtype="float32")

    def body(emit: Any, v: Any) -> Any:
        other = emit(op.permute_dims(v, [0, 2, 1])) if transposed else v
        return op.nn.relu(emit(op.matmul(v, other)))

    want = np.maximum(x @ (x.transpose(0, 2, 1) if transposed else x), 0)
    np.testing.assert_allclose(run(body, x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis", [-1, 0])
def test_the_largest_and_where_it_is(axis: int) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (5, 40)).astype("float32")
    x[2, 30] = np.nan

    def body(emit: Any, v: Any) -> Any:
        both = emit(op.topk(v, 1, axis, "both", True, "int64"))
        value, place = (emit(op.squeeze(emit(relax.TupleGetItem(both, n)), [axis])) for n in (0, 1))
        return relax.Tuple([value, place])

    value, place = run(body, x)
    np.testing.assert_array_equal(value, x.max(axis))
    np.testing.assert_array_equal(place, x.argmax(axis))


def test_a_tensor_of_one_number() -> None:
    x = np.ones((4, 8), "float32")
    full = run(lambda emit, v: op.add(v, emit(op.full((4, 8), relax.const(-np.inf, "float32"), "float32"))), x)
    assert np.isneginf(full).all()
