"""Time whole models: ours and the other systems, in turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qimeng_tvm.bench import timing
from qimeng_tvm.bench.model_peers.base import ModelPeer
from qimeng_tvm.bench.models.case import ModelCase
from qimeng_tvm.bench.models.export import ensure
from qimeng_tvm.bench.result import BenchResult
from qimeng_tvm.bench.run import Progress, bench_cases
from qimeng_tvm.hardware.model import Hardware

#: A call takes long enough as it is, and the packed weights of a model are loaded anew by whoever's turn it is.
PLAN = timing.TimingPlan(cap_seconds=10.0, min_repeats=3)
QUICK = timing.TimingPlan(repeats=5, cap_seconds=2.0, min_repeats=2, again=0)


def bench_models(
    systems: Sequence[ModelPeer],
    cases: Sequence[ModelCase],
    threads: Sequence[int] = (1,),
    progress: Progress | None = None,
    *,
    hardware: Hardware | None = None,
    partial: Path | None = None,
    plan: timing.TimingPlan = PLAN,
) -> BenchResult:
    """Time every system on every model at every thread count.

    Each runs in a process of its own, made anew for every model and thread count; a wrong result disqualifies.

    Parameters
    ----------
    systems : sequence of ModelPeer
        Ours and the others.
    cases : sequence of ModelCase
        Models; what is exported of them is made where it is not there.
    threads : sequence of int
        Thread counts.
    progress : callable, optional
        Called after every (model, threads).
    hardware : Hardware, optional
        For the share of peak, timed in turns with the systems.
    partial : Path, optional
        JSON-lines file that a killed run continues from.
    plan : TimingPlan
        How much to measure.
    """
    return bench_cases(systems, cases, _files, threads, plan, progress, hardware=hardware, partial=partial)


@contextmanager
def _files(case: ModelCase) -> Iterator[Path]:
    yield ensure(case)
