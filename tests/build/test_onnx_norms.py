"""Norms as ONNX has them: the numbers of ONNX Runtime, and one function each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from qimeng_tvm import Hardware  # noqa: E402
from qimeng_tvm.compiled_model import compile_module  # noqa: E402
from qimeng_tvm.relax.pipeline import Pipeline  # noqa: E402
from qimeng_tvm.relax.sources import module_of  # noqa: E402

SHAPE = (2, 12, 9, 5)


@pytest.mark.parametrize(
    ("operator", "opset", "attributes", "count"),
    [
        ("InstanceNormalization", 17, {"epsilon": 1e-3}, 12),
        ("GroupNormalization", 18, {"num_groups": 4}, 4),
        ("GroupNormalization", 21, {"num_groups": 3}, 12),
    ],
)
def test_norms(operator: str, opset: int, attributes: dict[str, Any], count: int) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(count, dtype="float32") for name in ("scale", "bias")}
    graph = helper.make_graph(
        [
            helper.make_node(operator, ["x", "scale", "bias"], ["n"], **attributes),
            helper.make_node("Relu", ["n"], ["y"]),
        ],
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    x = rng.standard_normal(SHAPE, dtype="float32") + 5
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x})
    compiled = compile_module(module_of(model), Pipeline(Hardware.host(), threads=1))
    np.testing.assert_allclose(compiled(x), want, rtol=1e-4, atol=1e-4)
    assert [f.rule.split("@")[0] for f in compiled.report.functions] == ["cpu.rowwise"]
