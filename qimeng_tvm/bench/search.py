"""Sample efficiency: how good the best schedule is after so many trials, and so many seconds, by strategy."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean, median

from qimeng_tvm.errors import UsageError
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.request import Request, parse
from qimeng_tvm.search import journal

#: Small, large, skinny, odd, and the narrow types.
OPERATORS = (
    "f32 GEMM 128x128x128",
    "f32 GEMM 1024x1024x1024",
    "f32 GEMM 16x3072x768 with weights",
    "f32 GEMM 255x257x263",
    "bf16 GEMM 512x512x512",
    "u8s8 GEMM 512x512x512 with weights",
)
#: Trials at which curves are told.
COUNTS = (1, 8, 16, 32, 64)
#: Share of the best known that counts as reached.
REACHED = 0.95
STOCK = "metaschedule"

#: (trial, seconds since the start, best GFLOP/s so far).
Point = tuple[int, float, float]
System = Callable[[Request, Hardware, int, int], list[Point]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Curve:
    """One run of one strategy.

    Attributes
    ----------
    operator, system : str
        What was tuned, by what.
    seed, trials : int
        Of the run.
    points : tuple of (int, float, float)
        Trial, seconds since the start, best GFLOP/s so far.
    """

    operator: str
    system: str
    seed: int
    trials: int
    points: tuple[Point, ...]

    def at(self, trials: int) -> float:
        """Return the best GFLOP/s after so many trials; 0 when nothing gave a time."""
        return max((best for trial, _, best in self.points if trial <= trials), default=0.0)

    def reaches(self, speed: float) -> float:
        """Return the first trial that is as fast as that; infinity when none is."""
        return min((float(trial) for trial, _, best in self.points if best >= speed), default=math.inf)

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.points[-1][1] if self.points else 0.0


@dataclass(frozen=True)
class Standing:
    """One strategy on one operator, over its seeds.

    Attributes
    ----------
    operator, system : str
        Which.
    shares : Mapping[int, float]
        Trials -> median speed, as a share of the best known.
    spread : Mapping[int, float]
        Trials -> slowest and fastest seed's difference, as such a share.
    to_95 : float
        Median trials to 95 % of the best known; infinity when half of the seeds do not get there.
    area : float
        Mean share over all trials, median of the seeds.
    seconds_per_trial : float
        Median.
    """

    operator: str
    system: str
    shares: Mapping[int, float]
    spread: Mapping[int, float]
    to_95: float
    area: float
    seconds_per_trial: float


def run_search_bench(
    systems: Sequence[str],
    hardware: Hardware,
    *,
    operators: Sequence[str] = OPERATORS,
    trials: int = 16,
    seeds: int = 5,
    partial: Path | None = None,
    say: Say = lambda _: None,
) -> tuple[Curve, ...]:
    """Tune every operator by every strategy with several seeds, each from nothing.

    Seeds come outermost and strategies by turns, so that what the machine does meanwhile happens to all of them.

    Parameters
    ----------
    systems : sequence of str
        Strategies of :data:`~qimeng_tvm.search.choose.STRATEGIES`, and ``metaschedule``: TVM's own space and search.
    hardware : Hardware
        This machine, measured.
    operators : sequence of str
        Lines.
    trials, seeds : int
        Of each run; runs of each strategy and operator.
    partial : Path, optional
        File of finished runs that an interrupted benchmark continues from.
    say : callable
        Told of every run.

    Raises
    ------
    UsageError
        If there is no such strategy, or the file is of something else.
    """
    known = known_systems()
    unknown = [name for name in systems if name not in known]
    if unknown:
        raise UsageError(f"no strategy is called {unknown[0]!r}; there are {', '.join(known)}")
    done = _read(partial)
    found = []
    for seed in range(seeds):
        for operator in operators:
            for name in systems:
                key = (operator, name, seed, trials)
                if key not in done:
                    points = known[name](parse(operator), hardware, seed, trials)
                    done[key] = Curve(operator, name, seed, trials, tuple(points))
                    _append(partial, done[key])
                    say(f"{operator}, {name}, seed {seed}: {done[key].at(trials):.1f} GFLOP/s")
                found.append(done[key])
    return tuple(found)


def known_systems() -> dict[str, System]:
    """Return what can be benchmarked by name."""
    from qimeng_tvm.bench.stock import tune_stock  # noqa: PLC0415 (it imports TVM)
    from qimeng_tvm.search.choose import STRATEGIES  # noqa: PLC0415 (it imports TVM)

    return {**{name: _ours(name) for name in STRATEGIES}, STOCK: tune_stock}


def _ours(strategy: str) -> System:
    def run(request: Request, hardware: Hardware, seed: int, trials: int) -> list[Point]:
        from qimeng_tvm.api import task_of  # noqa: PLC0415
        from qimeng_tvm.hardware import configure_threads  # noqa: PLC0415
        from qimeng_tvm.search import tune  # noqa: PLC0415 (xgboost and MetaSchedule are needed only here)

        threads = request.threads or 1
        task = task_of(request, hardware, threads)
        configure_threads(threads)
        points: list[Point] = []
        start = time.monotonic()

        def note(done: int, _total: int, best: float, _left: float) -> None:
            if done:
                points.append((done, time.monotonic() - start, best))

        with tempfile.TemporaryDirectory(prefix="qimeng-search-") as folder:
            tune(task, trials, folder, hardware, threads, seed, note, strategy=strategy)
        return points

    return run


def standings(curves: Sequence[Curve]) -> tuple[Standing, ...]:
    """Return what the runs come to, strategy by strategy on every operator."""
    found = []
    for operator in dict.fromkeys(c.operator for c in curves):
        here = [c for c in curves if c.operator == operator]
        best = max((c.at(c.trials) for c in here), default=0.0)
        if not best:
            continue
        for system in dict.fromkeys(c.system for c in here):
            found.append(_standing([c for c in here if c.system == system], best))
    return tuple(found)


def _standing(runs: Sequence[Curve], best: float) -> Standing:
    trials = min(run.trials for run in runs)
    counts = [n for n in COUNTS if n <= trials]
    shares = {n: [run.at(n) / best for run in runs] for n in counts}
    return Standing(
        operator=runs[0].operator,
        system=runs[0].system,
        shares={n: median(values) for n, values in shares.items()},
        spread={n: max(values) - min(values) for n, values in shares.items()},
        to_95=median(run.reaches(REACHED * best) for run in runs),
        area=median(sum(run.at(n) for n in range(1, trials + 1)) / trials / best for run in runs),
        seconds_per_trial=median(run.seconds / max(1, len(run.points)) for run in runs),
    )


def summary(found: Sequence[Standing]) -> dict[str, dict[str, float]]:
    """Return each strategy's figures over all operators: geometric means, and how often 95 % was reached."""
    told = {}
    for system in dict.fromkeys(s.system for s in found):
        own = [s for s in found if s.system == system]
        counts = sorted(set.intersection(*(set(s.shares) for s in own)))
        told[system] = {
            **{f"share@{n}": geometric_mean(max(s.shares[n], 1e-6) for s in own) for n in counts},
            "area": geometric_mean(max(s.area, 1e-6) for s in own),
            "reached": sum(math.isfinite(s.to_95) for s in own) / len(own),
            "seconds_per_trial": geometric_mean(max(s.seconds_per_trial, 1e-6) for s in own),
        }
    return told


def _read(path: Path | None) -> dict[tuple[str, str, int, int], Curve]:
    """Return the finished runs of a file; a last one that a kill tore is dropped."""
    if path is None:
        return {}
    journal.repair(path)
    found = {}
    for number, line in enumerate(journal.read(path), 1):
        try:
            entry = json.loads(line)
            points = tuple((int(n), float(s), float(g)) for n, s, g in entry.pop("points"))
            curve = Curve(**entry, points=points)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UsageError(f"{path} line {number} is no run of this benchmark: name another file") from error
        found[curve.operator, curve.system, curve.seed, curve.trials] = curve
    return found


def _append(path: Path | None, curve: Curve) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        journal.append(path, [json.dumps(asdict(curve)).encode()])
