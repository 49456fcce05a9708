"""PyTorch as it comes, an operator at a time."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from qimeng_tvm.bench.model_peers.base import ModelPeer
from qimeng_tvm.bench.model_peers.torchmodel import QUANTIZED, channels_last, fetch, load
from qimeng_tvm.bench.models.case import Files, ModelCase
from qimeng_tvm.bench.peers import torchlib
from qimeng_tvm.bench.systems import Offer, Refusal, Variant


@dataclass(frozen=True)
class TorchEager(ModelPeer):
    """Images in both layouts."""

    name: str = "torch_eager"
    packages: tuple[str, ...] = ("torch",)

    def prepare(self, request: ModelCase, inputs: Files, threads: int) -> Offer:
        """See :class:`Peer`."""
        if request.dtype == "int8":
            return Refusal(QUANTIZED)
        module, arguments = load(inputs, threads)
        torchlib.use_threads(threads)  # inference mode, the leanest
        offer = [Variant(lambda: module(*arguments), fetch)]
        if inputs.about["images"]:
            other, others = channels_last(copy.deepcopy(module), arguments)
            offer.append(Variant(lambda: other(*others), fetch, label="channels last"))
        return offer
