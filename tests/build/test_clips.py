"""ONNX Clip, which TVM's front end writes as loops: one function with the convolution before it."""

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
onnx = pytest.importorskip("onnx", reason="ONNX models need the package onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from tvm import relax  # noqa: E402
from tvm.relax.frontend.onnx import from_onnx  # noqa: E402

import qimeng_tvm  # noqa: E402
from qimeng_tvm.relax.clips import lift_clips  # noqa: E402


def model(*clips):
    """A convolution, then Clips of these (low, high); None: no limit."""
    weights = [numpy_helper.from_array(np.random.default_rng(0).standard_normal((16, 8, 1, 1)).astype("f4"), "w")]
    nodes, name = [helper.make_node("Conv", ["x", "w"], ["c"])], "c"
    for i, limits in enumerate(clips):
        inputs = [name]
        for j, limit in enumerate(limits):
            inputs.append(f"l{i}{j}" if limit is not None else "")
            if limit is not None:
                weights.append(numpy_helper.from_array(np.float32(limit), f"l{i}{j}"))
        name = f"y{i}"
        nodes.append(helper.make_node("Clip", inputs, [name]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "clips",
        [value("x", TensorProto.FLOAT, [1, 8, 5, 5])],
        [value(name, TensorProto.FLOAT, [1, 16, 5, 5])],
        weights,
    )
    return from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), keep_params_in_input=False)


def numbers(module, x):
    passes = qimeng_tvm.pipeline(threads=1)
    executable = relax.build(module, tvm.target.Target("llvm"), relax_pipeline=passes)
    return relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy(), passes.report


@pytest.mark.parametrize(
    "clips", [[(0.0, 6.0)], [(-0.5, None)], [(None, 0.25)], [(0.0, None), (None, 0.5)], [(float("nan"), 1.0)]], ids=str
)
def test_limits_are_applied_where_the_convolution_is(clips):
    x = np.random.default_rng(1).standard_normal((1, 8, 5, 5)).astype("f4")
    x[0, 0, 0, 0] = np.inf
    module = model(*clips)
    assert "clip" in lift_clips()(module)["main"].script()
    got, report = numbers(module, x)
    want, _ = numbers(model(), x)
    for low, high in clips:
        want = want if low is None or np.isnan(low) else np.maximum(want, np.float32(low))
        want = want if high is None else np.minimum(want, np.float32(high))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)
    # The image is brought to channels last and back; all else is one function.
    assert sum(f.calls for f in report.functions) == 3 and sum(f.tensorized for f in report.functions) == 1


def test_other_loops_stay():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_te(lambda a, b: tvm.topi.maximum(a, b) + b, x, relax.const(np.float32(1)))
            out = builder.emit_output(y)
        builder.emit_func_output(out)
    assert "clip" not in lift_clips()(builder.finalize())["main"].script()
