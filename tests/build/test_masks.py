"""Masks that a model works out of shapes: constants, and nothing where they mask nothing."""

from __future__ import annotations

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import relax  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm.hardware import host, target_of  # noqa: E402
from qimeng_tvm.relax.masks import fold_masks  # noqa: E402


def module(build, *shapes: tuple[int, ...]) -> tvm.IRModule:
    """A function of float32 tensors; ``build(emit, *tensors)`` returns its result."""
    inputs = [relax.Var(f"x{i}", R.Tensor(shape, "float32")) for i, shape in enumerate(shapes)]
    builder = relax.BlockBuilder()
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_output(build(builder.emit, *inputs))
        builder.emit_func_output(result)
    return builder.finalize()


def places(emit, size: int, axis: list[int]):
    where = emit(relax.op.add(emit(relax.op.arange(0, size, 1, "int64")), relax.const(0, "int64")))
    return emit(relax.op.expand_dims(where, axis))


def causal(emit, scores):
    """The mask of a decoder: no place looks at a later one."""
    seen = emit(relax.op.less_equal(places(emit, 6, [0]), places(emit, 6, [1])))
    mask = emit(relax.op.where(seen, relax.const(0.0, "float32"), relax.const(-np.inf, "float32")))
    wide = emit(relax.op.broadcast_to(emit(relax.op.expand_dims(mask, [0])), (2, 6, 6)))
    return emit(relax.op.add(scores, wide))


def nothing(emit, scores):
    """The mask of an encoder that looks at all: every place is at least the first."""
    seen = emit(relax.op.greater_equal(places(emit, 6, [0, 2]), relax.const(0, "int64")))
    seen = emit(relax.op.broadcast_to(seen, (1, 6, 6)))
    mask = emit(relax.op.where(seen, relax.const(0.0, "float32"), relax.const(-np.inf, "float32")))
    return emit(relax.op.add(scores, mask))


def operators(mod: tvm.IRModule) -> list[str]:
    found: list[str] = []

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call):
            found.append(str(getattr(expr.op, "name", expr.op)))

    relax.analysis.post_order_visit(mod["main"], visit)
    return found


def simplified(mod: tvm.IRModule) -> tvm.IRModule:
    passes = [fold_masks(), relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()]
    return tvm.transform.Sequential(passes)(mod)


def test_a_causal_mask_is_a_constant():
    mod = module(causal, (2, 6, 6))
    assert operators(simplified(mod)) == ["relax.add"]
    executable = relax.build(mod, target_of(host(), 1), relax_pipeline="qimeng")
    x = np.random.default_rng(0).standard_normal((2, 6, 6), np.float32)
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()
    assert np.array_equal(result, np.where(np.tri(6, dtype=bool), x, -np.inf))


def test_a_mask_of_zeros_is_not_added():
    assert operators(simplified(module(nothing, (2, 6, 6)))) == []


def test_an_addition_that_makes_the_result_larger_stays():
    wide = module(lambda emit, x: emit(relax.op.add(x, relax.const(np.zeros((2, 6, 6), np.float32)))), (1, 6, 6))
    assert operators(simplified(wide)) == ["relax.add"]


def test_weights_and_sums_of_floats_stay():
    weights = np.ones((4, 4), np.float32)

    def build(emit, x):
        low = emit(relax.op.astype(relax.const(weights), "float16"))
        return emit(relax.op.add(x, emit(relax.op.astype(emit(relax.op.add(low, low)), "float32"))))

    names = operators(simplified(module(build, (4, 4))))
    assert sorted(names) == ["relax.add", "relax.add", "relax.astype", "relax.astype"]


def test_a_single_number_stays_one():
    def build(emit, x):
        place = emit(relax.op.add(relax.const(-2, "int64"), relax.const(5, "int64")))
        zero = relax.const(0, "int64")
        place = emit(relax.op.where(emit(relax.op.less(place, zero)), zero, place))
        return emit(relax.op.take(x, place, axis=1))

    mod = simplified(module(build, (2, 6, 6)))
    assert operators(mod) == ["relax.take"] and [int(d) for d in mod["main"].ret_ty.shape] == [2, 6]


def test_large_results_are_left_to_run_time():
    def build(emit, x):
        row = emit(relax.op.arange(0, 3000, 1, "int64"))
        mask = emit(relax.op.less(emit(relax.op.expand_dims(row, [0])), emit(relax.op.expand_dims(row, [1]))))
        return emit(relax.op.where(mask, x, x))

    assert "relax.less" in operators(simplified(module(build, (3000, 3000))))
