"""TVM's own tuning pipeline (``static_shape_tuning``), with the trials that ours may use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qimeng_tvm.bench.model_peers import tvmmodel
from qimeng_tvm.bench.model_peers.base import ModelPeer
from qimeng_tvm.bench.models.case import Files, ModelCase
from qimeng_tvm.bench.systems import Offer, Refusal

_RUNNER_SECONDS = 20
_TRIALS_PER_ROUND = 32
_RECORDS = "database_tuning_record.json"


@dataclass(frozen=True)
class TvmStaticTuning(ModelPeer):
    """Weights packed at build; what was tuned once is kept beside the model's files."""

    name: str = "tvm_static_tuning"
    prepare_seconds: float = 14400.0
    trials: int = 0

    def prepare(self, request: ModelCase, inputs: Files, threads: int) -> Offer:
        """See :class:`Peer`."""
        if not self.trials:
            return Refusal("no trials were asked for (--trials)")
        from tvm import relax  # noqa: PLC0415 (slow to import, and only in the child)

        target = tvmmodel.host_target(threads)
        folder = inputs.folder / f"static-tuning-{threads}t-{self.trials}"
        module = _prepared(tvmmodel.read(inputs), target)
        if not (folder / _RECORDS).exists():
            _tune(module, target, folder, self.trials)
        executable = relax.build(_scheduled(module, target, folder), target, relax_pipeline="default")
        return tvmmodel.variant(executable, inputs.inputs, trials=self.trials)


def _prepared(module: Any, target: Any) -> Any:
    """Do what the pipeline does before it tunes."""
    import tvm  # noqa: PLC0415 (as above)
    from tvm.relax import pipeline, transform  # noqa: PLC0415 (as above)

    with target:
        return tvm.transform.Sequential(
            [
                transform.DecomposeOpsForInference(),
                transform.CanonicalizeBindings(),
                pipeline.zero_pipeline(),
                transform.AttachAttrLayoutFreeBuffers(),
            ]
        )(module)


def _tune(module: Any, target: Any, folder: Path, trials: int) -> None:
    """Tune with the pipeline's own settings, but for builders that start in seconds instead of a minute."""
    from tvm.s_tir import meta_schedule as ms  # noqa: PLC0415 (as above)

    from qimeng_tvm.bench.peers.tvm_metaschedule import build_candidate  # noqa: PLC0415 (as above)

    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    for stale in partial.glob("database_*"):
        stale.unlink()
    ms.relax_integration.tune_relax(
        module,
        {},
        target,
        str(partial),
        trials,
        num_trials_per_iter=min(_TRIALS_PER_ROUND, trials),
        builder=ms.builder.LocalBuilder(max_workers=1, f_build=build_candidate),
        runner=ms.runner.LocalRunner(timeout_sec=_RUNNER_SECONDS),
        seed=0,
    )
    partial.rename(folder)


def _scheduled(module: Any, target: Any, folder: Path) -> Any:
    """Do what the pipeline does after it tuned."""
    import tvm  # noqa: PLC0415 (as above)
    from tvm.relax import transform  # noqa: PLC0415 (as above)

    with target:
        return tvm.transform.Sequential(
            [
                transform.MetaScheduleApplyDatabase(str(folder)),
                transform.SplitLayoutRewritePreproc(),
                transform.LiftTransformParams(),
                transform.FoldConstant(),
            ]
        )(module)
