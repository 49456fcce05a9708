"""An ONNX model of flexible batch size, fixed, compiled to a library and run from there.

Run: python examples/onnx_model.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

import qimeng_tvm

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
rng = np.random.default_rng(0)
weights = {"w": rng.standard_normal((128, 96), dtype=np.float32), "b": rng.standard_normal(96, dtype=np.float32)}
graph = helper.make_graph(
    [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["hidden"]),
        helper.make_node("Softmax", ["hidden"], ["y"], axis=-1),
    ],
    "classifier",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 128])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 96])],
    [numpy_helper.from_array(array, name) for name, array in weights.items()],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), folder / "model.onnx")

# The example input fixes the batch; on the command line: qimeng compile model.onnx -o model.so --input x=32x128
x = rng.standard_normal((32, 128), dtype=np.float32)
compiled = qimeng_tvm.compile(folder / "model.onnx", {"x": x}, threads=1)
library = compiled.export(folder / "model.so")

machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
result = machine["main"](tvm.runtime.tensor(x)).numpy()

hidden = np.maximum(x.astype(np.float64) @ weights["w"] + weights["b"], 0)
exponents = np.exp(hidden - hidden.max(-1, keepdims=True))
np.testing.assert_allclose(result, exponents / exponents.sum(-1, keepdims=True), rtol=1e-3, atol=1e-6)
np.testing.assert_array_equal(result, compiled(x))
print(f"{library}: right")
