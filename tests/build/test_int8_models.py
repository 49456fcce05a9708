"""Quantized ONNX models on integers: the numbers of ONNX Runtime, up to one unit of the result's scale."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from qimeng_tvm import Hardware  # noqa: E402
from qimeng_tvm.compiled_model import CompiledModel, compile_module  # noqa: E402
from qimeng_tvm.errors import ModelError  # noqa: E402
from qimeng_tvm.relax.pipeline import Pipeline  # noqa: E402
from qimeng_tvm.relax.quantized import integer_contractions  # noqa: E402
from qimeng_tvm.relax.sources import module_of  # noqa: E402

Array = np.ndarray[Any, Any]
STEP = 0.05


class Graph:
    """An ONNX graph, node by node; every value is quantized where it is made."""

    def __init__(self, dtype: str, zero: int) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.dtype, self.zero = dtype, zero
        self.rng = np.random.default_rng(0)

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def scales(self, scale: float, zero: int, dtype: str) -> tuple[str, str]:
        return self.constant(np.float32(scale)), self.constant(np.dtype(dtype).type(zero))

    def quantized(self, value: str, scale: float = STEP) -> str:
        """Quantize and dequantize."""
        return self.real(self.integers(value, scale), scale)

    def integers(self, value: str, scale: float = STEP) -> str:
        return self.node("QuantizeLinear", value, *self.scales(scale, self.zero, self.dtype))

    def real(self, value: str, scale: float = STEP) -> str:
        return self.node("DequantizeLinear", value, *self.scales(scale, self.zero, self.dtype))

    def weights(self, *shape: int, axis: int | None = None, dtype: str = "int8", zero: int = 0) -> str:
        """Constant weights with a scale for each index of an axis, or one."""
        limits = np.iinfo(dtype)
        values = self.rng.integers(limits.min, limits.max + 1, shape, dtype=dtype)
        count = () if axis is None else (shape[axis],)
        fan = np.prod(shape) / shape[axis or 0]
        scale = (self.rng.uniform(0.5, 1.5, count) / (100 * np.sqrt(fan))).astype("float32")
        zeros = self.constant(np.full(count, zero, dtype))
        attributes = {} if axis is None else {"axis": axis}
        return self.node("DequantizeLinear", self.constant(values), self.constant(scale), zeros, **attributes)

    def bias(self, count: int) -> str:
        values = self.rng.integers(-3000, 3000, count, dtype="int32")
        return self.node(
            "DequantizeLinear", self.constant(values), self.constant(np.full(count, 1e-4, "float32")), axis=0
        )

    def model(self, shape: Sequence[int], result: str, out: Sequence[int], dtype: str | None = None) -> Any:
        kinds = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, None: TensorProto.FLOAT}
        graph = helper.make_graph(
            self.nodes, "quantized",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(result, kinds[dtype], out)],
            self.constants,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def check(model: Any, shape: Sequence[int], unit: float, threads: int = 1) -> CompiledModel:
    """Compare with what ONNX Runtime computes node by node; return the compiled model."""
    x = np.random.default_rng(1).normal(0.5, 2, shape).astype("float32")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x})
    compiled = compile_module(module_of(model), Pipeline(Hardware.host(), threads=threads))
    got = compiled(x)
    assert got.dtype == want.dtype and got.shape == want.shape
    error = np.abs(got.astype("float64") - want.astype("float64"))
    assert error.max() <= unit * 1.001, f"{error.max() / unit} units"
    assert (error > unit / 2).mean() <= 0.01, "few results lie so near to the middle of two"
    assert np.ptp(want.astype("float64")) > 20 * unit, "the result must tell something"
    return compiled


def contractions(compiled: CompiledModel) -> list[str]:
    """Operand types of each function that multiplies and sums."""
    return [" ".join(f.operator.split()[-3:-1]) for f in compiled.report.functions if f.contraction]


TYPES = [("uint8", 0), ("uint8", 113), ("int8", 0), ("int8", -20)]


@pytest.mark.parametrize(("dtype", "zero"), TYPES)
def test_convolutions_and_the_sum_with_a_short_cut_are_on_integers(dtype: str, zero: int) -> None:
    graph, shape = Graph(dtype, zero), (1, 16, 9, 9)
    x = graph.node("Conv", graph.quantized("x"), graph.weights(16, 16, 3, 3, axis=0), pads=[1, 1, 1, 1])
    x = graph.quantized(x)
    y = graph.node("Conv", x, graph.weights(32, 16, 3, 3, axis=0), graph.bias(32), pads=[1, 1, 1, 1])
    y = graph.quantized(graph.node("Relu", y))
    y = graph.quantized(graph.node("Conv", y, graph.weights(16, 32, 3, 3, axis=0), pads=[1, 1, 1, 1]))
    z = graph.integers(graph.node("Add", y, x), 1.7 * STEP)
    compiled = check(graph.model(shape, z, shape, dtype), shape, 1, threads=2)
    assert contractions(compiled) == [f"{dtype} int8"] * 3
    assert compiled.report.tensorized == 1.0
    rest = [f.operator.split()[0] for f in compiled.report.functions if not f.contraction]
    assert rest == ["elementwise"] * 2, "the first quantization, and the result as NCHW"


@pytest.mark.parametrize(("dtype", "zero"), TYPES)
@pytest.mark.parametrize("axis", [None, 1])
def test_products_are_on_integers(dtype: str, zero: int, axis: int | None) -> None:
    graph, shape = Graph(dtype, zero), (2, 6, 40)
    x = graph.quantized("x")
    y = graph.node("MatMul", x, graph.weights(40, 24, axis=axis))
    y = graph.node("Add", y, graph.constant(np.linspace(-1, 1, 24, dtype="float32")))
    compiled = check(graph.model(shape, graph.integers(y), (2, 6, 24), dtype), shape, 1)
    assert contractions(compiled) == [f"{dtype} int8"]


def test_gemm_with_transposed_unsigned_weights_and_a_result_in_floating_point() -> None:
    graph, shape = Graph("uint8", 130), (5, 40)
    weights = graph.weights(24, 40, axis=0, dtype="uint8", zero=128)
    y = graph.node("Gemm", graph.quantized("x"), weights, graph.bias(24), transB=1)
    compiled = check(graph.model(shape, y, (5, 24)), shape, 1e-5)
    assert contractions(compiled) == ["uint8 int8"]


def test_pools_and_reshapes_choose_among_integers() -> None:
    graph, shape = Graph("uint8", 100), (1, 16, 8, 8)
    x = graph.quantized("x")
    y = graph.node("Conv", x, graph.weights(16, 16, 1, 1, axis=0), strides=[2, 2])
    y = graph.node("MaxPool", graph.quantized(y), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    y = graph.node("Flatten", graph.quantized(y))
    y = graph.node("Gemm", y, graph.weights(256, 10, axis=1))
    compiled = check(graph.model(shape, graph.integers(y), (1, 10), "uint8"), shape, 1)
    assert contractions(compiled) == ["uint8 int8"] * 2
    reals = [f for f in compiled.report.functions if "float32" in f.operator]
    assert len(reals) == 1, "the first quantization"


def test_depthwise_and_grouped_convolutions_and_a_mean() -> None:
    graph, shape = Graph("uint8", 90), (1, 32, 10, 10)
    y = graph.node("Conv", graph.quantized("x"), graph.weights(32, 1, 3, 3, axis=0), pads=[1, 1, 1, 1], group=32)
    y = graph.node("Clip", y, graph.constant(np.float32(-6)), graph.constant(np.float32(6)))
    y = graph.node("Conv", graph.quantized(y), graph.weights(64, 8, 3, 3, axis=0), strides=[2, 2], group=4)
    y = graph.integers(graph.node("GlobalAveragePool", graph.quantized(y)), STEP / 7.3)
    check(graph.model(shape, y, (1, 64, 1, 1), "uint8"), shape, 1)


@pytest.mark.parametrize(("dtype", "zero"), TYPES)
@pytest.mark.parametrize("attributes", [{"strides": [2, 2]}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}, {}], ids=str)
def test_transposed_convolutions_are_on_integers(dtype: str, zero: int, attributes: dict[str, Any]) -> None:
    size = 2 if attributes == {"strides": [2, 2]} else 3
    graph, shape = Graph(dtype, zero), (1, 16, 7, 9)
    y = graph.node("ConvTranspose", graph.quantized("x"), graph.weights(16, 32, size, size, axis=1), **attributes)
    y = graph.node("Add", y, graph.constant(np.linspace(-0.1, 0.1, 32, dtype="float32").reshape(1, 32, 1, 1)))
    step, pad = attributes.get("strides", [1])[0], attributes.get("pads", [0])[0]
    out = (1, 32, *((extent - 1) * step + size - 2 * pad for extent in shape[2:]))
    compiled = check(graph.model(shape, graph.integers(y), out, dtype), shape, 1)
    assert contractions(compiled) == [f"{dtype} int8"] and compiled.report.tensorized == 1.0


def test_products_of_two_activations_need_zero_points_of_zero() -> None:
    for dtype, zero, want in (("int8", 0, "int8 int8"), ("int8", 3, "float32 float32")):
        graph, shape = Graph(dtype, zero), (2, 16, 16)
        x = graph.quantized("x")
        right = graph.quantized(graph.node("Transpose", graph.node("Sin", x), perm=[0, 2, 1]), STEP / 4)
        y = graph.integers(graph.node("MatMul", x, right), 0.5)
        compiled = check(graph.model(shape, y, (2, 16, 16), dtype), shape, 1)
        assert contractions(compiled) == [want]


@pytest.mark.parametrize("zero", [0, 7])
def test_integer_products_of_scales_found_at_run_time(zero: int) -> None:
    graph, shape = Graph("uint8", 0), (2, 6, 40)
    graph.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]))
    values = graph.rng.integers(-100, 100, (40, 24), dtype="int8")
    sums = graph.node("MatMulInteger", "q", graph.constant(values), "zero", graph.constant(np.int8(zero)))
    real = graph.node("Mul", graph.node("Cast", sums, to=TensorProto.FLOAT), "scale")
    compiled = check(graph.model(shape, real, (2, 6, 24)), shape, 1e-2)
    assert contractions(compiled) == ["uint8 int8"]
    assert not [f.name for f in compiled.report.functions if f.source == "fallback"]


@pytest.mark.parametrize("axis", [None, 0])
def test_convolutions_of_quantized_tensors(axis: int | None) -> None:
    graph, shape = Graph("uint8", 113), (1, 16, 9, 9)
    count = (1,) if axis is None else (32,)
    scales = graph.rng.uniform(0.5, 1.5, count).astype("float32") / 1200
    weights = [
        graph.constant(graph.rng.integers(-128, 128, (32, 16, 3, 3), dtype="int8")),
        graph.constant(scales if axis is not None else scales.reshape(())),
        graph.constant(np.zeros(count if axis is not None else (), "int8")),
    ]
    bias = graph.constant(graph.rng.integers(-3000, 3000, 32, dtype="int32"))
    q = [graph.integers("x"), *graph.scales(STEP, 113, "uint8")]
    y = graph.node("QLinearConv", *q, *weights, *graph.scales(STEP, 113, "uint8"), bias, pads=[1, 1, 1, 1])
    compiled = check(graph.model(shape, y, (1, 32, 9, 9), "uint8"), shape, 1)
    assert contractions(compiled) == ["uint8 int8"]


@pytest.mark.parametrize("count", [(), (1,), (24,)])
def test_products_of_quantized_tensors(count: tuple[int, ...]) -> None:
    graph, shape = Graph("uint8", 113), (6, 40)
    scales = (graph.rng.uniform(0.5, 1.5, count) / 400).astype("float32")
    weights = [graph.constant(graph.rng.integers(-128, 128, (40, 24), dtype="int8")), graph.constant(scales)]
    q = [graph.integers("x"), *graph.scales(STEP, 113, "uint8"), *weights, graph.constant(np.zeros(count, "int8"))]
    y = graph.node("QLinearMatMul", *q, *graph.scales(STEP, 113, "uint8"))
    compiled = check(graph.model(shape, y, (6, 24), "uint8"), shape, 1)
    assert contractions(compiled) == ["uint8 int8"]


def test_what_is_not_read_is_named_with_what_to_do() -> None:
    graph = Graph("uint8", 0)
    y = graph.node("ConvInteger", graph.integers("x"), graph.constant(np.ones((8, 3, 3, 3), "int8")))
    node = helper.make_graph(
        graph.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info(y, TensorProto.INT32, (1, 8, 6, 6))], graph.constants,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"ConvInteger: .* not read; quantize .* \(QDQ\)"):
        module_of(helper.make_model(node, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_what_does_not_fit_keeps_its_meaning() -> None:
    graph, shape = Graph("uint8", 7), (6, 40)
    x = graph.quantized("x")
    by_row = graph.node("MatMul", x, graph.weights(40, 24, axis=0))
    wide = graph.node("MatMul", x, graph.weights(40, 24, axis=1, dtype="uint8", zero=3))
    y = graph.integers(graph.node("Add", by_row, wide), 8 * STEP)
    compiled = check(graph.model(shape, y, (6, 24), "uint8"), shape, 1)
    assert contractions(compiled) == ["float32 float32"] * 2


def test_a_short_cut_costs_one_factor_and_one_shift_an_operand() -> None:
    graph, shape = Graph("uint8", 100), (1, 16, 6, 6)
    x = graph.quantized(graph.node("Sin", graph.quantized("x")))
    y = graph.quantized(graph.node("Conv", x, graph.weights(16, 16, 1, 1, axis=0), graph.bias(16)))
    model = module_of(graph.model(shape, graph.integers(graph.node("Add", y, x)), shape, "uint8"))
    module = tvm.transform.Sequential([tvm.relax.transform.CanonicalizeBindings(), *integer_contractions()])(model)
    counts = Counter(re.findall(r"R\.(\w+)\(", module["main"].script().split("conv2d(")[1]))
    # Two zero points, the bias, the sum, and two additions for each of two roundings; the first is not read as bytes.
    assert (counts["multiply"], counts["astype"]) == (3, 3)
    assert counts["add"] + counts["subtract"] == 8


@pytest.mark.parametrize("zero", [0, 1])
def test_quantization_rounds_half_to_even_and_stays_in_range(zero: int) -> None:
    graph = Graph("int8", zero)
    model = graph.model((8,), graph.integers("x", 0.5), (8,), "int8")
    compiled = compile_module(module_of(model), Pipeline(Hardware.host(), threads=1))
    x = np.array([0.25, 0.75, 1.25, -0.25, -0.75, 1e30, -1e30, 63.0], "float32")
    rounded = np.array([0, 2, 2, 0, -2, 1000, -1000, 126])
    assert compiled(x).tolist() == np.clip(rounded + zero, -128, 127).tolist()
