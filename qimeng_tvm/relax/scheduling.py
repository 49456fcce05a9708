"""Give every function of a fused module its schedule: a record's, a rule's own, or a plain one of TVM's steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import tvm
from tvm import relax, s_tir, tirx

from qimeng_tvm.errors import ScheduleError, last_words
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.intrin import names_in
from qimeng_tvm.relax.functions import calls_of, served, weights_of
from qimeng_tvm.relax.report import DEFAULT, FALLBACK, RECORD, FunctionReport
from qimeng_tvm.relax.slicing import together_of
from qimeng_tvm.schedule import fallback
from qimeng_tvm.schedule.analysis import multiplies, root_blocks
from qimeng_tvm.schedule.apply import NEAR, REFUSALS, Task, build_schedule
from qimeng_tvm.schedule.contract import Value
from qimeng_tvm.schedule.row_tiles import independent_rows, schedule_rows
from qimeng_tvm.schedule.slices import Together, in_turns
from qimeng_tvm.search.records import RecordDatabase, rule_id, workload_key

#: What carries a function through Relax's passes, and a schedule drops.
_CARRIED = ("op_pattern",)


@dataclass(frozen=True)
class Scheduled:
    """A function with its schedule, and how it came to it."""

    func: tirx.PrimFunc
    task: Task | None
    source: str
    why: str
    values: Mapping[str, Value]
    intrins: tuple[str, ...]
    #: Whether the task is that of a tile of rows, of which there are as many as it turns out.
    tiled: bool = False
    #: Operations, where the task is that of a part; else 0.
    flops: int = 0
    operator: str = ""


def schedule_module(
    module: tvm.IRModule, hardware: Hardware, threads: int, database: Path | None
) -> tuple[tvm.IRModule, tuple[FunctionReport, ...]]:
    """Schedule every PrimFunc of a fused module.

    Parameters
    ----------
    module : tvm.IRModule
        As :func:`qimeng_tvm.relax.prepare.legalize_and_fuse` leaves it.
    hardware : Hardware
        The machine.
    threads : int
        Cores that a function may use.
    database : path, optional
        Folder of tuning records; none are used without it.

    Returns
    -------
    module, reports
        The module with scheduled functions, and what became of each.
    """
    records = RecordDatabase(database) if database is not None else None
    calls, callers = calls_of(module), _callers(module)
    weights = weights_of(module, hardware, threads)
    known: dict[str, Scheduled] = {}
    reports = []
    for gv, func in module.functions.items():
        together = together_of(func) if isinstance(func, tirx.PrimFunc) else None
        if not isinstance(func, tirx.PrimFunc) or (together is None and _is_scheduled(func)):
            continue
        if together is not None:
            found = _schedule_slices(together, hardware, threads, records)
        else:
            key = workload_key(func, threads)
            if key not in known:
                known[key] = schedule_function(func, hardware, threads, records, weights)
            found = known[key]
        attrs = {name: func.attrs[name] for name in _CARRIED if name in (func.attrs or {})}
        module.update_func(gv, found.func.with_attrs(attrs) if attrs else found.func)
        name = str(gv.name_hint)
        reports.append(_report(name, calls.get(name, 0), callers.get(name, ()), func, found))
    return module, tuple(r for r in reports if r.calls)


def _callers(module: tvm.IRModule) -> Mapping[str, tuple[str, ...]]:
    """Return the Relax functions that call each function."""
    found: dict[str, tuple[str, ...]] = {}
    for gv, function in module.functions.items():
        if isinstance(function, relax.Function):
            for callee in calls_of(tvm.IRModule({gv: function})):
                found[callee] = (*found.get(callee, ()), str(gv.name_hint))
    return found


def _is_scheduled(func: tirx.PrimFunc) -> bool:
    return bool((func.attrs or {}).get("tirx.is_scheduled", False))


def schedule_function(
    func: tirx.PrimFunc, hardware: Hardware, threads: int, records: RecordDatabase | None, weights: str = NEAR
) -> Scheduled:
    """Schedule one function by its record, else by the decisions of a rule that serves it, else plainly.

    ``weights`` as in :class:`~qimeng_tvm.schedule.apply.Task`.
    """
    task, why = served(func, hardware, threads, weights)
    if task is None:
        tiled = _schedule_tiles(func, hardware, threads, records)
        if tiled is not None:
            return replace(tiled, why=why)
        return Scheduled(fallback.schedule(func, threads), None, FALLBACK, why, {}, ())
    record = records.best(task, verified_only=False) if records is not None else None
    attempts = [(RECORD, dict(record.decisions))] if record is not None else []
    for source, values in [*attempts, (DEFAULT, task.space.defaults())]:
        try:
            sch = build_schedule(task, values)
        except REFUSALS as error:
            why = f"{source} refused: {last_words(error)[:200]}"
            continue
        names = names_in(str(sch.trace))
        return Scheduled(sch.mod["main"], task, source, why, values, names)
    return Scheduled(fallback.schedule(func, threads), task, FALLBACK, why, {}, ())


def _schedule_slices(together: Together, hardware: Hardware, threads: int, records: RecordDatabase | None) -> Scheduled:
    """Schedule the parts of a function that is computed in slices, for one core each, and put them together."""
    parts = [schedule_function(part, hardware, 1, records) for part in together.parts]
    whole = in_turns(together, [p.func for p in parts], parallel=threads > 1)
    first = parts[0]
    extents = first.task.info.operator.split()[1] if first.task is not None else ""
    sources = {p.source for p in parts}
    flops = together.slices * sum(
        p.task.info.flops if p.task is not None else contraction_flops(f)[0]
        for p, f in zip(parts, together.parts, strict=True)
    )
    return replace(
        first,
        func=whole,
        source=next(s for s in (FALLBACK, RECORD, DEFAULT) if s in sources),
        why="; ".join(dict.fromkeys(p.why for p in parts if p.why)),
        values={f"{n}.{name}": v for n, p in enumerate(parts) for name, v in p.values.items()},
        flops=flops,
        operator=f"attention {together.slices} slices of {extents}",
    )


def _schedule_tiles(
    func: tirx.PrimFunc, hardware: Hardware, threads: int, records: RecordDatabase | None
) -> Scheduled | None:
    """Schedule a function of an unknown number of rows by tiles of rows that a rule serves; None if it cannot be.

    What computes element by element is shared out as a whole by its plain schedule, which is as fast.
    """
    tiles: list[Scheduled] = []

    def serve(tile: tirx.PrimFunc) -> tirx.PrimFunc:
        found = schedule_function(tile, hardware, threads, records)
        if found.task is None or found.source == FALLBACK or found.task.info.kind == "elementwise":
            raise ScheduleError("no rule serves a tile")
        tiles.append(found)
        return found.func

    try:
        rows = independent_rows(func)
        tiled = schedule_rows(func, rows, serve) if rows is not None else None
    except REFUSALS:
        return None
    return replace(tiles[0], func=tiled, tiled=True) if tiled is not None else None


def _report(name: str, calls: int, callers: tuple[str, ...], func: tirx.PrimFunc, found: Scheduled) -> FunctionReport:
    task = found.task
    flops, contraction = (
        (task.info.flops, task.info.contraction) if task is not None and not found.tiled else contraction_flops(func)
    )
    if found.operator:
        flops, contraction = found.flops, True
    return FunctionReport(
        name=name,
        calls=calls,
        operator=found.operator or (task.info.operator if task is not None else ""),
        rule=rule_id(task) if task is not None and found.source != FALLBACK else "",
        family=str(found.values.get("family", found.values.get("0.family", ""))),
        source=found.source,
        why=found.why,
        flops=flops,
        contraction=contraction,
        tensorized=bool(found.intrins),
        decisions=dict(found.values),
        callers=callers,
    )


def contraction_flops(func: tirx.PrimFunc) -> tuple[int, bool]:
    """Return the floating-point operations of a function that no rule serves, and whether it multiplies and sums."""
    sch = s_tir.Schedule(func)
    if not any(multiplies(sch, block) for block in root_blocks(sch)):
        return 0, False
    try:
        return int(s_tir.analysis.estimate_tir_flops(tvm.IRModule({"main": func}))), True
    except (RuntimeError, ValueError, TypeError):  # symbolic shapes
        return 0, True
