"""Sample efficiency: every operator is tuned by every strategy with several seeds, and the runs are kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qimeng_tvm.bench.curves import Curve, Point, append, read_journal
from qimeng_tvm.bench.entrant import STOCK, Entrant, parse_entrant
from qimeng_tvm.errors import UsageError
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.request import Request, describe, parse

if TYPE_CHECKING:
    from qimeng_tvm.generate.adviser import Adviser
    from qimeng_tvm.generate.proposal import Tuned

#: Small, large, skinny, odd, the narrow types, and a batch as attention has it.
OPERATORS = (
    "f32 GEMM 128x128x128",
    "f32 GEMM 1024x1024x1024",
    "f32 GEMM 16x3072x768 with weights",
    "f32 GEMM 255x257x263",
    "bf16 GEMM 512x512x512",
    "u8s8 GEMM 512x512x512 with weights",
    "batch 12 f32 GEMM 128x128x64",
)


@dataclass(frozen=True)
class Job:
    """One run that is asked for: what to tune, where, and how."""

    line: str
    request: Request
    hardware: Hardware
    seed: int
    trials: int


#: The run's points, and the decisions that it ended with.
Ran = tuple[list[Point], Mapping[str, int | str]]
System = Callable[[Job], Ran]
#: ``advise(operator, entrant, seed)``: who advises a run with ``+llm``.
Advise = Callable[["Tuned", Entrant, int], "Adviser"]
Say = Callable[[str], None]


def run_search_bench(
    systems: Sequence[str],
    hardware: Hardware,
    *,
    operators: Sequence[str] = OPERATORS,
    trials: int = 16,
    seeds: int = 5,
    partial: Path | None = None,
    advise: Advise | None = None,
    say: Say = lambda _: None,
) -> tuple[Curve, ...]:
    """Tune every operator by every strategy with several seeds, each from nothing.

    Seeds come outermost and strategies by turns, so that what the machine does meanwhile happens to all of them.

    Parameters
    ----------
    systems : sequence of str
        Names as :func:`~qimeng_tvm.bench.entrant.parse_entrant` reads them: ``mcts``, ``mcts-backup``, ``mcts+llm``,
        and ``metaschedule``, which is TVM's own space and search.
    hardware : Hardware
        This machine, measured.
    operators : sequence of str
        Lines.
    trials, seeds : int
        Of each run; runs of each strategy and operator.
    partial : Path, optional
        File of finished runs that an interrupted benchmark continues from.
    advise : callable, optional
        Makes the adviser of a run with ``+llm``; without it such names are refused.
    say : callable
        Told of every run.

    Raises
    ------
    UsageError
        If a name stands for nothing, a model is needed and none was given, or the file is of something else.
    """
    known = {name: system_of(name, advise) for name in systems}
    done = {} if partial is None else read_journal(partial)
    machine = f"{hardware.name} ({hardware.fingerprint})"
    found = []
    for seed in range(seeds):
        for operator in operators:
            for name, run in known.items():
                key = (operator, name, seed, trials)
                if key not in done:
                    points, decisions = run(Job(operator, parse(operator), hardware, seed, trials))
                    done[key] = Curve(*key, tuple(points), machine, dict(decisions))
                    if partial is not None:
                        append(partial, done[key])
                    say(f"{operator}, {name}, seed {seed}: {done[key].at(trials):.1f} GFLOP/s")
                found.append(done[key])
    return tuple(found)


def system_of(name: str, advise: Advise | None = None) -> System:
    """Return what runs a system of that name.

    Raises
    ------
    UsageError
        If it stands for nothing, or a model is needed and none was given.
    """
    from qimeng_tvm.bench.stock import tune_stock  # noqa: PLC0415 (it imports TVM)
    from qimeng_tvm.search.choose import STRATEGIES  # noqa: PLC0415 (it imports TVM)

    entrant = parse_entrant(name, tuple(STRATEGIES))
    if entrant.strategy == STOCK:
        return lambda job: (tune_stock(job.request, job.hardware, job.seed, job.trials), {})
    if entrant.llm and advise is None:
        raise UsageError(f"{name!r} needs a language model, and none was named")
    return lambda job: _ours(job, entrant, advise)


def _ours(job: Job, entrant: Entrant, advise: Advise | None) -> Ran:
    from qimeng_tvm.api import task_of  # noqa: PLC0415
    from qimeng_tvm.generate.proposal import Tuned  # noqa: PLC0415
    from qimeng_tvm.hardware import configure_threads  # noqa: PLC0415
    from qimeng_tvm.search import tune  # noqa: PLC0415 (xgboost and MetaSchedule are needed only here)
    from qimeng_tvm.search.choose import Guide  # noqa: PLC0415

    threads = job.request.threads or 1
    task = task_of(job.request, job.hardware, threads)
    configure_threads(threads)
    points: list[Point] = []
    start = time.monotonic()
    guide = Guide(without=entrant.without)
    if entrant.llm and advise is not None:
        adviser = advise(Tuned(task, describe(job.request)), entrant, job.seed)
        guide = Guide(adviser.first(), adviser.expand, entrant.without)

    def note(done: int, _total: int, best: float, _left: float) -> None:
        if done:
            points.append((done, time.monotonic() - start, best))

    with tempfile.TemporaryDirectory(prefix="qimeng-search-") as folder:
        found = tune(
            task, job.trials, folder, job.hardware, threads, job.seed, note, strategy=entrant.strategy, guides=[guide]
        )
    return timed_again(points, found.results[0].gflops), found.results[0].values


def timed_again(points: Sequence[Point], speed: float) -> list[Point]:
    """Return the points with what tuning came to in the last one, as it is in TVM's own curve.

    The finalists' second timing makes it faster; a finalist that was found wrong then never counted.
    """
    kept = [(trial, seconds, min(best, speed)) for trial, seconds, best in points]
    return [*kept[:-1], (*kept[-1][:2], speed)] if kept else []
