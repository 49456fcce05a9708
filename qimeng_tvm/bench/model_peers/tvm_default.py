"""TVM's default pipeline, nothing tuned."""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_tvm.bench.model_peers import tvmmodel
from qimeng_tvm.bench.model_peers.base import ModelPeer
from qimeng_tvm.bench.models.case import Files, ModelCase
from qimeng_tvm.bench.systems import Offer, Refusal


@dataclass(frozen=True)
class TvmDefaultModel(ModelPeer):
    """Plain loops, on one core: larger models are refused, since a call of them takes a minute or more."""

    name: str = "tvm_default"
    max_flops: float = 1e10

    def prepare(self, request: ModelCase, inputs: Files, threads: int) -> Offer:
        """See :class:`Peer`."""
        if request.flops > self.max_flops:
            return Refusal(f"left out above {self.max_flops:.0e} operations: plain loops take too long")
        from tvm import relax  # noqa: PLC0415 (slow to import, and only in the child)

        target = tvmmodel.host_target(threads)
        return tvmmodel.variant(relax.build(tvmmodel.read(inputs), target, relax_pipeline="default"), inputs.inputs)
