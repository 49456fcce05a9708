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
    """What a user gets from ``relax.build(module, target, relax_pipeline="qimeng")``."""

    name: str = "qimeng"
    prepare_seconds: float = 14400.0
    trials: int = 0
    database: Path | None = None

    def prepare(self, request: ModelCase, inputs: Files, threads: int) -> Offer:
        """See :class:`Peer`."""
        from tvm import relax  # noqa: PLC0415 (slow to import, and only in the child)

        target = tvmmodel.host_target(threads)
        passes = relax.get_pipeline("qimeng", threads=threads, trials=self.trials, database=self.database)
        executable = relax.build(tvmmodel.read(inputs), target, relax_pipeline=passes)
        tvmmodel.host_target(threads)  # tuning leaves its own threads
        share = round(passes.report.tensorized, 4)
        return tvmmodel.variant(executable, inputs, trials=self.trials, tensorized=share)
