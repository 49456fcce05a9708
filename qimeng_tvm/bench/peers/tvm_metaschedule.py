"""TVM's MetaSchedule as it comes, with the trials that ours may use."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

from qimeng_tvm.bench.data import Inputs
from qimeng_tvm.bench.peers import tvmlib
from qimeng_tvm.bench.systems import BenchError, Offer, Peer, Variant
from qimeng_tvm.request import Request

_RUNNER_SECONDS = 20
_TRIALS_PER_ROUND = 32


def build_candidate(module: Any, target: Any, _params: Any) -> Any:
    """Build as MetaSchedule's own function does, without its import of every chip's intrinsics.

    A candidate is lowered already and needs none of them; the import takes up to a minute in each worker process,
    more than the builder's time limit.
    """
    from tvm.driver import build  # noqa: PLC0415
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock  # noqa: PLC0415

    return build(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module), target=target)


@dataclass(frozen=True)
class TvmMetaSchedule(Peer):
    """``meta_schedule.tune_tir`` for every case and thread count; hours for the whole suite."""

    name: str = "tvm_metaschedule"
    prepare_seconds: float = 1800.0
    trials: int = 32

    def prepare(self, request: Request, inputs: Inputs, threads: int) -> Offer:
        """See :class:`Peer`."""
        import tvm  # noqa: PLC0415
        from tvm.s_tir import meta_schedule as ms  # noqa: PLC0415

        target = tvmlib.host_target(threads)
        module = tvmlib.product_module(request)
        with tempfile.TemporaryDirectory() as folder:
            database = ms.tune_tir(
                module,
                target,
                folder,
                max_trials_global=self.trials,
                num_trials_per_iter=min(_TRIALS_PER_ROUND, self.trials),
                num_tuning_cores=1,
                builder=ms.builder.LocalBuilder(max_workers=1, f_build=build_candidate),
                runner=ms.runner.LocalRunner(timeout_sec=_RUNNER_SECONDS),
                seed=0,
            )
            schedule = ms.tir_integration.compile_tir(database, module, target)
        if schedule is None:
            raise BenchError(f"{self.trials} trials found no schedule that builds and runs")
        tvmlib.use_threads(threads)
        library = tvm.compile(schedule.mod, target=target)
        call, fetch = tvmlib.bind(library, inputs, request)
        return Variant(call, fetch, note="B is not packed beforehand", extra={"trials": self.trials})
