"""ONNX Runtime, inputs and outputs bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from qimeng_tvm.bench.model_peers.base import ModelPeer, exported
from qimeng_tvm.bench.models.case import ONNX, Files, ModelCase, flat
from qimeng_tvm.bench.systems import Offer, Variant

#: It makes products with a bias in float32, which nothing then brings onto bytes: left out, those are on bytes.
_WAYS: Mapping[str, Sequence[str]] = MappingProxyType({"": (), "no MatMulAddFusion": ("MatMulAddFusion",)})


@dataclass(frozen=True)
class OnnxRuntimeModel(ModelPeer):
    """All of its graph optimizations; of a quantized model also all but one, and the faster way counts."""

    name: str = "onnxruntime"
    packages: tuple[str, ...] = ("onnxruntime",)

    def prepare(self, request: ModelCase, inputs: Files, threads: int) -> Offer:
        """See :class:`Peer`."""
        path = exported(inputs, "onnx", ONNX)
        if request.dtype == "int8":
            return [_variant(path, inputs, threads, label=label, without=names) for label, names in _WAYS.items()]
        return _variant(path, inputs, threads, note="in float32: no bf16 on the CPU" if request.dtype == "bf16" else "")


def _variant(
    path: Path, files: Files, threads: int, *, label: str = "", note: str = "", without: Sequence[str] = ()
) -> Variant:
    import onnxruntime as ort  # noqa: PLC0415 (an extra)

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
    )
    binding = session.io_binding()
    for slot, array in zip(session.get_inputs(), files.plain, strict=True):
        binding.bind_ortvalue_input(slot.name, ort.OrtValue.ortvalue_from_numpy(array))
    for slot in session.get_outputs():
        binding.bind_output(slot.name)
    return Variant(
        lambda: session.run_with_iobinding(binding),
        lambda _: flat([value.numpy() for value in binding.get_outputs()]),
        label=label,
        note=note,
    )
