"""Ours: the Relax pipeline ``qimeng``, which tunes beforehand when there are trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qimeng_tvm.bench.model_peers import tvmmodel
from qimeng_tvm.bench.model_peers.base import ModelPeer
from qimeng_tvm.bench.models.case import Files, ModelCase
from qimeng_tvm.bench.systems import Offer


@dataclass(frozen=True)
class QimengModel(ModelPeer):
    """What a user gets from ``relax.build(module, target, relax_pipeline="qimeng")``.

    In bf16 it reads the model of float32, and the pipeline narrows the operands of its contractions.
    """

    name: str = "qimeng"
    prepare_seconds: float = 14400.0
    trials: int = 0
    database: Path | None = None

    def prepare(self, request: ModelCase, inputs: Files, threads: int) -> Offer:
        """See :class:`Peer`."""
        from tvm import relax  # noqa: PLC0415 (slow to import, and only in the child)

        target = tvmmodel.host_target(threads)
        dtype = "bf16" if request.dtype == "bf16" else "f32"
        passes = relax.get_pipeline("qimeng", threads=threads, trials=self.trials, database=self.database, dtype=dtype)
        executable = relax.build(tvmmodel.read(inputs, narrowed=dtype != "f32"), target, relax_pipeline=passes)
        tvmmodel.host_target(threads)  # tuning leaves its own threads
        share = round(passes.report.tensorized, 4)
        return tvmmodel.variant(executable, inputs.plain, trials=self.trials, tensorized=share)
