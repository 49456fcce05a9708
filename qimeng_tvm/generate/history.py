"""What a model is told of the trials so far: times, and what limits a point by its machine code and by the caches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from qimeng_tvm.errors import QimengError
from qimeng_tvm.hardware.model import Hardware, peak_dtype
from qimeng_tvm.llm.prompts.proposal import History, Seen
from qimeng_tvm.schedule.apply import Task
from qimeng_tvm.schedule.contract import BlockInfo, Value, Values
from qimeng_tvm.schedule.pressure import Pressure, plan_of, pressure_of

#: Points told: the fastest, the slowest, the latest, those that failed.
BEST, WORST, LAST, FAILED = 4, 2, 3, 2
#: Share of the work on padding, and of a cache, from which it is worth a word.
_PADDING, _FULL = 0.01, 0.75

Trials = Sequence[tuple[Values, float | None]]
#: values -> spills in the inner loop of the machine code; None where that cannot be told.
Spills = Callable[[Values], int | None]


def history_of(task: Task, trials: Trials, dropped: Sequence[str] = (), spills: Spills | None = None) -> History:
    """Choose which trials to tell, and say what limits each.

    Parameters
    ----------
    task : Task
        What is tuned.
    trials : sequence of (decisions, seconds or None)
        In the order they were measured.
    dropped : sequence of str
        What was not taken of earlier proposals.
    spills : callable, optional
        Asked of the fastest and of the slowest; by default both are compiled and their machine code is looked at.
    """
    timed = sorted(((v, s) for v, s in trials if s is not None), key=lambda t: t[1])
    failed = [v for v, s in trials if s is None]
    spills = spills or partial(spills_in, task)
    if not timed:
        return History(len(trials), tuple(Seen("failed", dict(v)) for v in failed[-FAILED:]), tuple(dropped))
    best, fastest = timed[0]
    told: dict[int, str] = {}
    for kind, part in (("best", timed[:BEST]), ("worst", timed[-WORST:])):
        for values, _ in part:
            told.setdefault(id(values), kind)
    for values, seconds in trials[-LAST:]:
        if seconds is not None:
            told.setdefault(id(values), "last")
    points = []
    for values, seconds in timed:
        if id(values) not in told:
            continue
        looked = spills(values) if values is best or values is timed[-1][0] else None
        shown = dict(values) if values is best else _difference(values, best)
        limits = limits_of(values, task.info, task.hardware, looked)
        points.append(
            Seen(told[id(values)], shown, seconds, fastest / seconds, _of_peak(task, seconds), limits, values is best)
        )
    points += [Seen("failed", _difference(v, best)) for v in failed[-FAILED:]]
    return History(len(trials), tuple(points), tuple(dropped))


def _difference(values: Values, best: Values) -> dict[str, Value]:
    return {name: value for name, value in values.items() if best.get(name) != value}


def _of_peak(task: Task, seconds: float) -> float | None:
    peak = task.hardware.peak(peak_dtype(task.info.a_dtype), task.info.threads)
    return task.info.flops / seconds / 1e9 / peak if peak else None


def limits_of(values: Values, info: BlockInfo, hardware: Hardware, spills: int | None = None) -> tuple[str, ...]:
    """Say what limits a point, by what it asks of registers and caches; nothing when it is no blocking."""
    plan = plan_of(values, info)
    if plan is None:
        return ()
    p = pressure_of(info, plan, hardware)
    kept, swept = ("B", "A") if plan.inner_order == "n" else ("A", "B")
    said = [
        f"its micro-kernel can reach {p.kernel:.0%} of the multiply-add rate",
        f"{p.registers:.0%} of the registers",
        *_caches(p, kept, swept),
    ]
    if plan.k_blocks > 1:
        said.append(f"C is read and written {plan.k_blocks} times")
    packs = [name for name, way in (("A", plan.pack_a), ("B", plan.pack_b)) if way in ("whole", "block")]
    if packs:
        said.append(f"packs {' and '.join(packs)} in the measured time")
    if p.padding > _PADDING:
        said.append(f"{p.padding:.0%} of the work is padding")
    if plan.threads > 1:
        said.append(f"{p.chunks:.3g} pieces of work for each core")
    if spills is not None:
        said.append(f"{spills} spills in the inner loop" if spills else "no spills in the inner loop")
    return tuple(said)


def _caches(p: Pressure, kept: str, swept: str) -> list[str]:
    full = " (too much)"
    return [
        f"{kept}'s panel takes {p.l1:.0%} of L1{full if p.l1 > _FULL else ''}",
        f"{swept}'s block takes {p.l2:.0%} of L2{full if p.l2 > _FULL else ''}",
        f"what all blocks share takes {p.l3:.0%} of L3{full if p.l3 > _FULL else ''}",
    ]


def spills_in(task: Task, values: Mapping[str, Value]) -> int | None:
    """Compile a point and count the spills in its inner loop; None when it cannot be compiled or linked here."""
    from qimeng_tvm.check.audit import audit  # noqa: PLC0415 (only when a model is asked)
    from qimeng_tvm.compiler import compile_task, export_library  # noqa: PLC0415

    try:
        with tempfile.TemporaryDirectory(prefix="qimeng-audit-") as folder:
            compiled = compile_task(task, values)
            return audit(export_library(compiled.library, Path(folder) / "point.so"), ()).spills
    except QimengError:
        return None
