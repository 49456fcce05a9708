"""TVM's own tuning of an operator: MetaSchedule's default space and evolutionary search, as a curve."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import redirect_stdout
from typing import Any

from qimeng_tvm.bench.peers import tvmlib
from qimeng_tvm.bench.peers.tvm_metaschedule import build_candidate
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.numerics import flops
from qimeng_tvm.request import Request

#: The fastest schedules are timed once more at the end, as ours are.
FINALISTS = 3
_PER_ROUND = 16
_RUNNER_SECONDS = 20
#: Calls of a finalist's timing: repeats of at least so many milliseconds.
_REPEATS, _REPEAT_MS = 5, 50


def tune_stock(request: Request, hardware: Hardware, seed: int, trials: int) -> list[tuple[int, float, float]]:
    """Tune with MetaSchedule's own space and search (packing of a constant B is not in it).

    Returns
    -------
    list of (int, float, float)
        Trial, seconds since the start, best GFLOP/s so far.
    """
    from tvm.s_tir import meta_schedule as ms  # noqa: PLC0415

    threads = request.threads or 1
    points: list[tuple[int, float, float]] = []
    module, target = tvmlib.product_module(request), tvmlib.host_target(threads)
    # MetaSchedule logs to standard output, which may be where the JSON goes.
    with tempfile.TemporaryDirectory(prefix="qimeng-search-") as folder, redirect_stdout(sys.stderr):
        database = ms.tune_tir(
            module,
            target,
            folder,
            max_trials_global=trials,
            num_trials_per_iter=min(_PER_ROUND, trials),
            num_tuning_cores=1,
            builder=ms.builder.LocalBuilder(max_workers=hardware.cores, f_build=build_candidate),
            runner=ms.runner.LocalRunner(timeout_sec=_RUNNER_SECONDS),
            measure_callbacks=[_note(flops(request), points), *ms.measure_callback.MeasureCallback.create("default")],
            seed=seed,
        )
        again = _timed_again(database, module, target, threads)
    if points and again:
        trial, seconds, best = points[-1]
        points[-1] = (trial, seconds, max(best, flops(request) / again / 1e9))
    return points


def _note(work: float, points: list[tuple[int, float, float]]) -> Any:
    from tvm.ir.utils import derived_object  # noqa: PLC0415
    from tvm.s_tir import meta_schedule as ms  # noqa: PLC0415

    start = time.monotonic()

    @derived_object
    class Note(ms.measure_callback.PyMeasureCallback):  # type: ignore[misc]
        """Note every trial as it comes."""

        def apply(self, _scheduler: Any, _task: int, _candidates: Any, _built: Any, results: Any) -> None:
            for result in results:
                seconds = [float(s) for s in result.run_secs or ()]
                speed = work / min(seconds) / 1e9 if seconds else 0.0
                best = max(speed, points[-1][2] if points else 0.0)
                points.append((len(points) + 1, time.monotonic() - start, best))

    return Note()


def _timed_again(database: Any, module: Any, target: Any, threads: int) -> float:
    """Return the least seconds of the fastest schedules, timed once more; 0 when there are none."""
    import numpy as np  # noqa: PLC0415
    import tvm  # noqa: PLC0415

    from qimeng_tvm.check.buffers import numpy_dtype  # noqa: PLC0415

    found: list[float] = []
    tvmlib.use_threads(threads)
    workload = database.commit_workload(module)
    for record in database.get_top_k(workload, FINALISTS):
        schedule = tvm.s_tir.Schedule(module)
        record.trace.apply_to_schedule(schedule, remove_postproc=False)
        library = build_candidate(schedule.mod, target, None)
        shapes = [(p.shape, str(p.dtype)) for p in record.args_info]
        arrays = [tvm.runtime.tensor(np.ones([int(x) for x in s], numpy_dtype(d))) for s, d in shapes]
        timer = library.time_evaluator("main", tvm.cpu(), number=1, repeat=_REPEATS, min_repeat_ms=_REPEAT_MS)
        found.append(min(float(s) for s in timer(*arrays).results))
    return min(found, default=0.0)
