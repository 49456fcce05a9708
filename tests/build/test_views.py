"""A result that only has another shape than what was computed is not copied; an argument that is handed back is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import relax  # noqa: E402
from tvm.script import relax as R  # noqa: E402

from qimeng_tvm import Pipeline  # noqa: E402
from qimeng_tvm.hardware import host, target_of  # noqa: E402

op = relax.op
SHAPE, OTHER = (6, 8), (2, 3, 8)


def build(body: Callable[[Any, Any], Any]) -> tuple[Any, str]:
    """Return the function and the instructions of the virtual machine."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", R.Tensor(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(body(builder.emit, x))
        builder.emit_func_output(result)
    executable = relax.build(builder.finalize(), target_of(host(), 1), relax_pipeline=Pipeline(threads=1))
    return relax.VirtualMachine(executable, tvm.cpu())["main"], executable.as_text()


def computed(text: str) -> int:
    """How many functions other than the virtual machine's own are called."""
    return sum("call" in line and "vm.builtin" not in line for line in text.splitlines())


def test_a_computed_result_is_not_copied() -> None:
    run, text = build(lambda emit, x: op.reshape(emit(op.nn.relu(x)), OTHER))
    assert computed(text) == 1 and "vm.builtin.reshape" in text
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    first = run(tvm.runtime.tensor(x))
    second = run(tvm.runtime.tensor(-x))  # what the first call returned stays what it was
    np.testing.assert_array_equal(first.numpy(), np.maximum(x, 0).reshape(OTHER))
    np.testing.assert_array_equal(second.numpy(), np.maximum(-x, 0).reshape(OTHER))


def test_an_argument_is_copied() -> None:
    run, text = build(lambda emit, x: op.reshape(emit(op.reshape(x, (48,))), OTHER))
    assert computed(text) == 1
    x = tvm.runtime.tensor(np.ones(SHAPE, "float32"))
    result = run(x)
    x.copyfrom(np.zeros(SHAPE, "float32"))
    np.testing.assert_array_equal(result.numpy(), np.ones(OTHER, "float32"))


def test_several_results() -> None:
    def body(emit: Any, x: Any) -> Any:
        y = emit(op.nn.relu(x))
        return relax.Tuple([emit(op.reshape(y, OTHER)), emit(op.add(y, y))])

    run, _ = build(body)
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    one, two = run(tvm.runtime.tensor(x))
    np.testing.assert_array_equal(one.numpy(), np.maximum(x, 0).reshape(OTHER))
    np.testing.assert_array_equal(two.numpy(), 2 * np.maximum(x, 0))
