"""ONNX Runtime, inputs and outputs bound."""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_tvm.bench.model_peers.base import ModelPeer, exported
from qimeng_tvm.bench.models.case import ONNX, Files, ModelCase, flat
from qimeng_tvm.bench.systems import Offer, Variant


@dataclass(frozen=True)
class OnnxRuntimeModel(ModelPeer):
    """All of its graph optimizations."""

    name: str = "onnxruntime"
    packages: tuple[str, ...] = ("onnxruntime",)

    def prepare(self, request: ModelCase, inputs: Files, threads: int) -> Offer:
        """See :class:`Peer`."""
        import onnxruntime as ort  # noqa: PLC0415 (an extra)

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        path = exported(inputs, "onnx", ONNX)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for slot, array in zip(session.get_inputs(), inputs.plain, strict=True):
            binding.bind_ortvalue_input(slot.name, ort.OrtValue.ortvalue_from_numpy(array))
        for slot in session.get_outputs():
            binding.bind_output(slot.name)
        return Variant(
            lambda: session.run_with_iobinding(binding),
            lambda _: flat([value.numpy() for value in binding.get_outputs()]),
            note="" if request.dtype == "f32" else "in float32: no bf16 on the CPU",
        )
