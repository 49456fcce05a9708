"""ONNX Runtime: MatMul (f32) and MatMulInteger (u8s8); a constant B is an initializer, which it packs itself."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from qimeng_tvm.bench.data import Inputs, aligned_empty
from qimeng_tvm.bench.systems import Offer, Peer, Refusal, Variant
from qimeng_tvm.request import Request

_OPSET, _IR_VERSION = 17, 8  # old enough for every runtime in use


@dataclass(frozen=True)
class OnnxRuntime(Peer):
    """A one-node model, run with bound input and output buffers."""

    name: str = "onnxruntime"

    def available(self) -> str | None:
        """See :class:`Peer`."""
        missing = [p for p in ("onnx", "onnxruntime") if importlib.util.find_spec(p) is None]
        return f"{' and '.join(missing)} not installed" if missing else None

    def prepare(self, request: Request, inputs: Inputs, threads: int) -> Offer:
        """See :class:`Peer`."""
        how: dict[str, Any] = {"constant_b": request.constant_b, "threads": threads}
        if request.a_dtype == "float32":
            return _variant(inputs.a, inputs.b, **how)
        if request.a_dtype == "uint8":
            # The same product with B as u8 around 128: exact where the u8s8 kernel saturates.
            around_128 = (inputs.b.astype(np.int16) + 128).astype(np.uint8)
            return [
                _variant(inputs.a, inputs.b, **how, label="u8s8"),
                _variant(inputs.a, around_128, **how, label="u8u8, B shifted beforehand", zero_point=128),
            ]
        return Refusal("no MatMul of this type on the CPU")


def _variant(
    a: np.ndarray[Any, Any],
    b: np.ndarray[Any, Any],
    *,
    constant_b: bool,
    threads: int,
    label: str = "",
    zero_point: int = 0,
) -> Variant:
    import onnx  # noqa: PLC0415 - extras
    import onnxruntime as ort  # noqa: PLC0415
    from onnx import helper, numpy_helper  # noqa: PLC0415

    def kind(array: np.ndarray[Any, Any]) -> int:
        return int(helper.np_dtype_to_tensor_dtype(array.dtype))

    operator = "MatMul" if a.dtype == np.float32 else "MatMulInteger"
    out = aligned_empty((*a.shape[:-1], b.shape[-1]), np.int32 if operator == "MatMulInteger" else np.float32)
    operands, values = [helper.make_tensor_value_info("a", kind(a), a.shape)], []
    if constant_b:
        values.append(numpy_helper.from_array(b, "b"))
    else:
        operands.append(helper.make_tensor_value_info("b", kind(b), b.shape))
    names = ["a", "b"]
    if zero_point:
        values += [
            numpy_helper.from_array(np.array(0, a.dtype), "za"),
            numpy_helper.from_array(np.array(zero_point, b.dtype), "zb"),
        ]
        names += ["za", "zb"]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["c"])],
        "product",
        operands,
        [helper.make_tensor_value_info("c", kind(out), out.shape)],
        values,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in (("a", a), ("b", b)):
        if name == "a" or not constant_b:
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    bound = ort.OrtValue.ortvalue_from_numpy(out)
    binding.bind_ortvalue_output("c", bound)
    return Variant(lambda: session.run_with_iobinding(binding), lambda _: bound.numpy(), label=label)
