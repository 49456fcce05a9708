"""The last word of a run: its fastest candidates, and the analytic decisions, timed again in turns.

Times of different moments hold what else the machine did then, which may be more than what candidates differ by: the
fastest of many is, as often as not, the luckiest. Timed in turns they share what happens; and what comes out is no
slower than the analytic decisions, but for what is left of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qimeng_tvm.schedule.apply import build_schedule
from qimeng_tvm.schedule.contract import Value
from qimeng_tvm.search.measure import Lab, job_of
from qimeng_tvm.search.records import Record
from qimeng_tvm.search.session import Measurement, Session, TaskState, Trial

#: The fastest that are timed again, beside the analytic decisions; turns of each.
FINALISTS, ROUNDS = 3, 2
#: Others that may still be asked for: those whose first time is less than what the finalists come to.
MORE = 3


def finalists(records: Sequence[Record], default: Mapping[str, Value]) -> list[Record]:
    """Return the fastest records of a task, and that of the analytic decisions."""
    timed = sorted((r for r in records if _timed(r, default)), key=lambda r: r.seconds_min or math.inf)
    return [r for i, r in enumerate(timed) if i < FINALISTS or dict(r.decisions) == dict(default)]


def _timed(record: Record, default: Mapping[str, Value]) -> bool:
    return record.status == "ok" and record.seconds_min is not None and set(record.decisions) == set(default)


def time_finalists(state: TaskState, lab: Lab, session: Session) -> None:
    """Time a task's finalists again, and record what that comes to, if this run has measured any of it.

    A run that is being stopped leaves the records as they are.
    """
    if not state.measured:
        return
    chosen = finalists(session.database.of_task(state.task), state.default)
    settled: set[tuple[object, ...]] = set()
    for _ in range(1 + MORE):
        if not chosen or not _settle(chosen, state, lab, session):
            return
        settled |= {r.key for r in chosen}
        timed = [r for r in session.database.of_task(state.task) if _timed(r, state.default)]
        fastest = min(timed, key=lambda r: r.seconds_min or math.inf, default=None)
        chosen = [fastest] if fastest is not None and fastest.key not in settled else []


def _settle(chosen: Sequence[Record], state: TaskState, lab: Lab, session: Session) -> bool:
    """Time some records in turns and write what they come to; False when the run is being stopped."""
    trials = [_trial(state, record) for record in chosen]
    found: list[list[Measurement]] = [[] for _ in chosen]
    for _ in range(ROUNDS):
        for trial, so_far in zip(trials, found, strict=True):
            if session.stopping:
                return False
            one = lab.lanes[0].measure(job_of(trial))
            if one is None:
                return False
            so_far.append(one)
    for record, measured in zip(chosen, found, strict=True):
        _write(record, measured, session)
    return True


def _trial(state: TaskState, record: Record) -> Trial:
    schedule = build_schedule(state.task, record.decisions)
    return Trial(f"{state.workload}/{record.schedule}", state, record.decisions, schedule, record.schedule, "again")


def _write(record: Record, measured: Sequence[Measurement], session: Session) -> None:
    wrong = next((m for m in measured if m.status == "numbers"), None)
    if wrong is not None:
        session.database.mark_failed(record, wrong.error)
        return
    timed = [m for m in measured if m.seconds_min is not None]
    if timed:
        best = min(timed, key=lambda m: m.seconds_min or math.inf)
        times = {"seconds_min": best.seconds_min, "seconds_median": best.seconds_median, "gflops": best.gflops}
        session.database.append(replace(record, **times))  # type: ignore[arg-type]
