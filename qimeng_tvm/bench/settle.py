"""What the runs of the search benchmark found, timed again side by side.

A run's own times hold the clock and the neighbours of their moment, which differ by as much as what is left to find. So
the decisions that all runs of an operator ended with are compiled once more and timed in turns, round by round: what
the machine does meanwhile happens to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from qimeng_tvm.bench.curves import Curve
from qimeng_tvm.errors import QimengError
from qimeng_tvm.hardware import Hardware

if TYPE_CHECKING:
    from qimeng_tvm.schedule.apply import Task
    from qimeng_tvm.schedule.contract import Value

#: Rounds, and the least seconds of one timing in each.
ROUNDS, _SLICE = 25, 0.004
Say = Callable[[str], None]
Found = tuple[tuple[str, "Value"], ...]


def settled(curves: Sequence[Curve], hardware: Hardware, say: Say = lambda _: None) -> tuple[Curve, ...]:
    """Return the runs with one point each: their last trial, and the speed of what they ended with.

    Parameters
    ----------
    curves : sequence of Curve
        Those that do not tell what they ended with, such as TVM's own, are left out.
    hardware : Hardware
        This machine.
    say : callable
        Told of every operator.
    """
    kept = []
    for operator in dict.fromkeys(c.operator for c in curves):
        runs = [c for c in curves if c.operator == operator and c.decisions]
        found = sorted({found_by(c) for c in runs}, key=str)
        say(f"{operator}: {len(found)} different schedules of {len(runs)} runs are timed again")
        speeds = timed(operator, found, hardware)
        kept += [_settled(c, speed) for c in runs if (speed := speeds.get(found_by(c)))]
    return tuple(kept)


def found_by(curve: Curve) -> Found:
    """Return a run's decisions as a key."""
    return tuple(sorted(curve.decisions.items()))


def _settled(curve: Curve, speed: float) -> Curve:
    return replace(curve, points=((curve.trials, curve.seconds, speed),))


def timed(operator: str, found: Sequence[Found], hardware: Hardware) -> Mapping[Found, float]:
    """Return the GFLOP/s of each set of decisions of an operator: medians of rounds in which each has its turn."""
    from qimeng_tvm.api import task_of  # noqa: PLC0415 (it imports TVM)
    from qimeng_tvm.hardware import use_threads  # noqa: PLC0415
    from qimeng_tvm.request import parse  # noqa: PLC0415

    request = parse(operator)
    threads = request.threads or 1
    task = task_of(request, hardware, threads)
    calls = {key: call for key in found if (call := _timer(task, dict(key))) is not None}
    with use_threads(threads, pin=True):
        first = {key: call(1) for key, call in calls.items()}
        numbers = {key: max(1, math.ceil(_SLICE / max(seconds, 1e-9))) for key, seconds in first.items()}
        rounds = [{key: call(numbers[key]) for key, call in calls.items()} for _ in range(ROUNDS)]
    return {key: task.info.flops / median(r[key] for r in rounds) / 1e9 for key in calls}


def _timer(task: Task, values: Mapping[str, Value]) -> Callable[[int], float] | None:
    """Return what times so many calls of a schedule; None when the installed rule does not have it."""
    import tvm  # noqa: PLC0415

    from qimeng_tvm.compiler import compile_task  # noqa: PLC0415
    from qimeng_tvm.search.candidate import make_inputs, probe_of  # noqa: PLC0415

    try:
        compiled = compile_task(task, values)
    except QimengError:
        return None
    arrays: list[Any] = [tvm.runtime.tensor(a) for a in make_inputs(probe_of("settle", task.func, task.info.k))]
    for at, (given, wanted) in enumerate(zip(arrays, compiled.parameters, strict=False)):
        if tuple(given.shape) != wanted.shape or str(given.dtype) != wanted.dtype:
            packed = tvm.runtime.empty(wanted.shape, wanted.dtype)
            compiled["pack_b"](given, packed)
            arrays[at] = packed
    out = compiled.parameters[-1]
    arrays.append(tvm.runtime.empty(out.shape, out.dtype))

    def time(number: int) -> float:
        evaluate = compiled.library.time_evaluator("main", tvm.cpu(), number=number, repeat=1)
        return float(evaluate(*arrays).results[0])

    return time
