"""Interleaved timing of several closures.

The method: every system is warmed up, then they take turns (A B C A B C ...), so that a change of clock or a busy
neighbour hits all alike. A turn is one unmeasured call (the caches belong to whoever ran before) and then one sample:
``inner`` calls in a plain loop, ``inner`` chosen so that the sample lasts at least a millisecond. At least 20 samples
and 50 ms a system; a system so slow that this would go over ``cap_seconds`` gets fewer samples, and the result says
how many. The Python overhead of a call belongs to the system's interface and stays inside.

Where a neighbour came and went meanwhile, the samples of the fastest systems spread, or the yardstick (a loop in
registers alone) is slower than this machine can be; then all of it is done again, and the calmest attempt counts,
whoever looks best in it.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: ``sampler(inner)`` makes one unmeasured call, then ``inner`` measured ones, and returns the seconds of one call.
Sampler = Callable[[int], float]
Clock = Callable[[], float]


@dataclass(frozen=True)
class TimingPlan:
    """How much to measure.

    Attributes
    ----------
    repeats : int
        Samples of one system.
    total_seconds : float
        Measured time of one system, at least.
    sample_seconds : float
        Length of one sample, at least.
    cap_seconds : float
        Measured time of one system, at most: beyond it there are fewer samples.
    min_repeats : int
        Samples that are taken even if that costs twice the cap; beyond that, one alone.
    hopeless : float
        A system this many times slower than the fastest gets ``min_repeats`` samples: they say enough.
    restless : float
        Spread of one of the two fastest systems above which the machine is taken not to have been calm.
    slowed : float
        The same for what a yardstick takes beyond its floor.
    again : int
        Further attempts then.
    """

    repeats: int = 20
    total_seconds: float = 0.05
    sample_seconds: float = 0.001
    cap_seconds: float = 6.0
    min_repeats: int = 3
    hopeless: float = 4.0
    restless: float = 0.2
    slowed: float = 0.1
    again: int = 2


FULL = TimingPlan()
QUICK = TimingPlan(repeats=7, total_seconds=0.015, cap_seconds=1.5, again=0)


@dataclass(frozen=True)
class Sample:
    """What the timing of one system says.

    Attributes
    ----------
    seconds_min, seconds_median : float
        Of one call, over the repeats. The median is what ratios are made of.
    spread : float
        (75th percentile - 25th percentile) / median.
    repeats, inner : int
        Samples taken, and calls in each.
    """

    seconds_min: float
    seconds_median: float
    spread: float
    repeats: int
    inner: int


def time_calls(call: Callable[[], Any], inner: int, clock: Clock = time.perf_counter) -> float:
    """Return the seconds of one call, from a loop of ``inner``; the garbage collector waits meanwhile."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        loop = itertools.repeat(None, inner)
        start = clock()
        for _ in loop:
            call()
        return (clock() - start) / inner
    finally:
        if enabled:
            gc.enable()


def calibrate(sampler: Sampler, plan: TimingPlan) -> tuple[int, int, float]:
    """Return (calls in a sample, samples, seconds of a call) for one system."""
    inner, seconds = 1, max(sampler(1), 1e-9)
    while inner * seconds < plan.sample_seconds:  # a single call of microseconds says little: refine
        inner = min(inner * 10, math.ceil(plan.sample_seconds / seconds))
        seconds = max(sampler(inner), 1e-9)
    target = max(plan.sample_seconds, plan.total_seconds / plan.repeats)
    inner = max(1, math.ceil(target / seconds))
    affordable = int(plan.cap_seconds / (inner * seconds))
    floor = plan.min_repeats if plan.min_repeats * inner * seconds <= 2 * plan.cap_seconds else 1
    return inner, max(floor, min(plan.repeats, affordable)), seconds


def summarize(seconds: Iterable[float], inner: int) -> Sample:
    """Boil the samples of one system down."""
    values = sorted(seconds)
    median = statistics.median(values)
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [median] * 3
    return Sample(values[0], median, (quarters[2] - quarters[0]) / median, len(values), inner)


def interleave(
    samplers: Mapping[str, Sampler], plan: TimingPlan = FULL, yardsticks: Collection[str] = ()
) -> dict[str, Sample | Exception]:
    """Time the systems in turns.

    A system whose sampler raises drops out; its exception stands in the result and the others go on. ``yardsticks``
    do another work than the systems (a peak loop): they take their turns, and nobody is called slow beside them.
    """
    result: dict[str, Sample | Exception] = {}
    calibrated: dict[str, tuple[int, int, float]] = {}
    plans: dict[str, tuple[int, int]] = {}
    taken: dict[str, list[float]] = {}
    for name, sampler in samplers.items():
        try:
            calibrated[name] = calibrate(sampler, plan)
            taken[name] = []
        except Exception as error:  # a peer may fail in any way; that is a row, not a crash
            result[name] = error
    once = {name: once for name, (_, _, once) in calibrated.items()}
    fastest = min((seconds for name, seconds in once.items() if name not in yardsticks), default=math.inf)
    slow = {name for name, seconds in once.items() if seconds > plan.hopeless * fastest} - set(yardsticks)
    for name, (inner, repeats, _) in calibrated.items():
        plans[name] = inner, min(repeats, plan.min_repeats) if name in slow else repeats
    rounds = max((repeats for _, repeats in plans.values()), default=0)
    for turn in range(rounds):
        for name, (inner, repeats) in plans.items():
            # Systems with fewer samples are spread over all rounds, not bunched at the start.
            if name in result or (turn + 1) * repeats // rounds == turn * repeats // rounds:
                continue
            try:
                taken[name].append(samplers[name](inner))
            except Exception as error:
                result[name] = error
    for name, seconds in taken.items():
        if name not in result:
            result[name] = summarize(seconds, plans[name][0])
    return {name: result[name] for name in samplers}


Samples = dict[str, Sample | Exception]


def interleave_calmly(
    samplers: Mapping[str, Sampler],
    plan: TimingPlan = FULL,
    yardsticks: Collection[str] = (),
    floors: Mapping[str, float] | None = None,
) -> tuple[Samples, int]:
    """Time the systems in turns, again if the machine was restless; return the calmest attempt and their number.

    ``floors`` has the seconds that yardsticks take on the machine when nobody else is there.
    """

    def unrest(samples: Samples) -> float:
        return _unrest(samples, plan, yardsticks, floors or {})

    best = interleave(samplers, plan, yardsticks)
    attempts = 1
    while attempts <= plan.again and unrest(best) > 1.0:
        best = min(best, interleave(samplers, plan, yardsticks), key=unrest)
        attempts += 1
    return best, attempts


def _unrest(samples: Samples, plan: TimingPlan, yardsticks: Collection[str], floors: Mapping[str, float]) -> float:
    """Return how far the machine was from calm; over 1 is restless. Who was fast does not enter."""
    found = {name: s for name, s in samples.items() if isinstance(s, Sample)}
    systems = sorted((s for name, s in found.items() if name not in yardsticks), key=lambda s: s.seconds_median)
    spread = max((s.spread for s in systems[:2]), default=0.0)
    slowed = max(
        (found[y].seconds_median / floors[y] - 1.0 for y in yardsticks if y in found and y in floors), default=0.0
    )
    return max(spread / plan.restless, slowed / plan.slowed)


def allowed_cores() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(cores: Iterable[int]) -> None:
    """Pin every thread of this process, pools of libraries included, to these cores."""
    if not hasattr(os, "sched_setaffinity"):
        return
    wanted = set(cores)
    for thread in _threads():
        _bind(thread, wanted)


def spread(cores: Sequence[int]) -> None:
    """Keep the calling thread on the first core and every other thread of this process on the rest.

    A pool's threads spin while they wait, so a caller that woke up on the core of one of them may stay there for many
    milliseconds, and the two share it at half speed while another core is idle.
    """
    if not hasattr(os, "sched_setaffinity") or len(cores) < 2:
        return
    for thread in _threads():
        _bind(thread, set(cores[1:]))
    _bind(0, {cores[0]})


def _threads() -> list[int]:
    tasks = Path("/proc/self/task")
    return [int(p.name) for p in tasks.iterdir()] if tasks.is_dir() else [0]


def _bind(thread: int, cores: set[int]) -> None:
    try:
        os.sched_setaffinity(thread, cores)
    except ProcessLookupError:  # it ended between the listing and now
        return
