"""OpenVINO's CPU plug-in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qimeng_tvm.bench.model_peers.base import ModelPeer, exported
from qimeng_tvm.bench.models.case import ONNX, Files, ModelCase, flat
from qimeng_tvm.bench.systems import Offer, Variant


@dataclass(frozen=True)
class OpenVino(ModelPeer):
    """One stream, in the precision asked for: where the CPU has bf16, it would take that for f32."""

    name: str = "openvino"
    packages: tuple[str, ...] = ("openvino",)

    def prepare(self, request: ModelCase, inputs: Files, threads: int) -> Offer:
        """See :class:`Peer`."""
        import openvino as ov  # noqa: PLC0415 (an extra)

        core = ov.Core()
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # What the file has on bytes is on bytes whatever the hint.
            "INFERENCE_PRECISION_HINT": "f32" if request.dtype == "int8" else request.dtype,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # pinned from outside, as everybody else
        }
        compiled = core.compile_model(core.read_model(exported(inputs, "onnx", ONNX)), "CPU", settings)
        run = compiled.create_infer_request()
        for index, array in enumerate(inputs.plain):
            run.set_input_tensor(index, ov.Tensor(array))
        count = len(compiled.outputs)

        def call() -> None:
            run.start_async()
            run.wait()

        return Variant(call, lambda _: flat([run.get_output_tensor(i).data for i in range(count)]))
