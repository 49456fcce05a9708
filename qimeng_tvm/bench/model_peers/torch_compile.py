"""PyTorch's compiler (inductor), weights frozen and packed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

from qimeng_tvm.bench.model_peers.base import ModelPeer
from qimeng_tvm.bench.model_peers.torchmodel import QUANTIZED, channels_last, fetch, load
from qimeng_tvm.bench.models.case import Files, ModelCase
from qimeng_tvm.bench.systems import Offer, Refusal, Variant


@dataclass(frozen=True)
class TorchCompile(ModelPeer):
    """With ``max_autotune`` its own products in C++ stand beside oneDNN's."""

    name: str = "torch_compile"
    packages: tuple[str, ...] = ("torch",)

    def available(self) -> str | None:
        """See :class:`Peer`."""
        return super().available() or (None if shutil.which("g++") else "inductor needs a C++ compiler (g++)")

    def prepare(self, request: ModelCase, inputs: Files, threads: int) -> Offer:
        """See :class:`Peer`."""
        if request.dtype == "int8":
            return Refusal(QUANTIZED)
        import torch  # noqa: PLC0415 (an extra)
        from torch._inductor import config  # noqa: PLC0415 (as above)

        config.freezing = True
        module, arguments = load(inputs, threads)
        if inputs.about["images"]:
            module, arguments = channels_last(module, arguments)
        compiled: Any = torch.compile(module, mode="max-autotune-no-cudagraphs")
        compiled(*arguments)  # it compiles now
        return Variant(lambda: compiled(*arguments), fetch)
