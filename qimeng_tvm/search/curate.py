"""Look after tuning records: list, take out, put together, check again, throw away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import QimengError, RecordError
from qimeng_tvm.files import write_atomic
from qimeng_tvm.hardware import host
from qimeng_tvm.schedule.apply import Task, build_schedule, make_task
from qimeng_tvm.search import journal
from qimeng_tvm.search.measure import WORKER_MODULE, Bench, job_of
from qimeng_tvm.search.records import TRACES, WORKLOADS, Record, RecordDatabase, current, operator_key, workload_key
from qimeng_tvm.search.session import Trial, new_state

Say = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """The records of one operator on one machine.

    Attributes
    ----------
    operator, machine, rule : str
        What was tuned, where, by which rule.
    threads, trials, failed : int
        Cores; trials, and those without a time.
    best : Record or None
        The fastest that may be applied; of records that were measured with other versions none.
    key : tuple
        Workload, machine's fingerprint, rule.
    """

    operator: str
    machine: str
    rule: str
    threads: int
    trials: int
    failed: int
    best: Record | None
    key: tuple[str, str, str]


def entries(records: Iterable[Record]) -> tuple[Entry, ...]:
    """Return records by operator, machine and rule, in the order they were first measured."""
    return tuple(_entry(key, group) for key, group in _grouped(records).items())


def _grouped(records: Iterable[Record]) -> dict[tuple[str, str, str], list[Record]]:
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.workload, record.fingerprint, record.rule), []).append(record)
    return groups


def _entry(key: tuple[str, str, str], group: Sequence[Record]) -> Entry:
    tried = [r for r in group if r.status != "schedule"]
    timed = [r for r in tried if r.status == "ok" and r.seconds_min is not None and current(r)]
    first = group[0]
    return Entry(
        operator=first.operator,
        machine=first.machine,
        rule=first.rule,
        threads=first.threads,
        trials=len(tried),
        failed=sum(r.status != "ok" for r in tried),
        best=min(timed, key=lambda r: r.seconds_min or float("inf"), default=None),
        key=key,
    )


def matching(records: Iterable[Record], text: str) -> tuple[Record, ...]:
    """Return the records whose operator, machine or workload key holds a text."""
    return tuple(r for r in records if text in r.operator or text in r.machine or r.workload.startswith(text))


def export(records: Iterable[Record], path: Path) -> int:
    """Write records to a file, one line of JSON each; return how many.

    Raises
    ------
    RecordError
        If it cannot be written.
    """
    listed = list(records)
    try:
        write_atomic(path, "".join(f"{r.to_line().decode()}\n" for r in listed))
    except OSError as error:
        raise RecordError(f"cannot write {path} ({error.strerror or error})") from error
    return len(listed)


def merge(into: RecordDatabase, folder: Path) -> int:
    """Add the records of another folder, and TVM's own of it; return how many were new.

    Of a trial that both have, the faster time stays, and that it was found wrong stays too.

    Raises
    ------
    RecordError
        If there are no records in it, or they are damaged.
    """
    other = RecordDatabase(folder)
    theirs = other.load()
    if not theirs:
        raise RecordError(f"no tuning records in {folder}")
    known = {r.key: r for r in into.load()}
    new = [r for r in theirs if _better(r, known.get(r.key))]
    if new:
        into.append(*new)
    _merge_tvm(into, folder)
    return len(new)


def _better(record: Record, known: Record | None) -> bool:
    if known is None:
        return True
    if known.status == "numbers" or record.status != "ok" or record.seconds_min is None:
        return record.status == "numbers" and known.status != "numbers"
    return known.seconds_min is None or record.seconds_min < known.seconds_min


def _merge_tvm(into: RecordDatabase, folder: Path) -> None:
    """Add another folder's MetaSchedule records."""
    have = set(_tvm_records(into.folder))
    for record in _tvm_records(folder):
        if record not in have:
            into.append(tvm_record=record)


def _tvm_records(folder: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield MetaSchedule's records: the workload, which they name by its line, and the rest."""
    workloads = journal.read(folder / WORKLOADS)
    for line in journal.read(folder / TRACES):
        number, _, rest = line.strip()[1:-1].partition(b",")
        if int(number) >= len(workloads):
            raise RecordError(f"{folder / TRACES} names workload {int(number)}, {WORKLOADS} has {len(workloads)}")
        yield workloads[int(number)], rest


def prune(database: RecordDatabase, keep: int) -> int:
    """Drop what is of no more use; return how many records went.

    What goes: records of other versions of rules or families, and of each operator all timed ones but the fastest
    ``keep``. Failures stay: they need no trying again.
    """
    records = database.load()
    kept: list[Record] = []
    for group in _grouped(filter(current, records)).values():
        timed = sorted((r for r in group if r.seconds_min is not None), key=lambda r: r.seconds_min or 0.0)
        kept += [r for r in group if r.seconds_min is None or r in timed[:keep]]
    if len(kept) < len(records):
        database.rewrite(kept)
    return len(records) - len(kept)


@dataclass(frozen=True)
class Verified:
    """What came of checking an operator's best record again.

    Attributes
    ----------
    entry : Entry
        Which.
    ok : bool
        The numbers are right.
    why : str
        Else, what is wrong; or why it was not checked.
    checked : bool
        Whether it was checked at all.
    """

    entry: Entry
    ok: bool
    why: str = ""
    checked: bool = True


def verify(database: RecordDatabase, say: Say = lambda _: None) -> tuple[Verified, ...]:
    """Compile the best record of every operator of this machine again and compare its numbers.

    One that is right is marked as verified, one that is wrong as failed: it is never applied again.
    """
    tasks = _tasks(database.folder)
    found = []
    with Worker(preload=(WORKER_MODULE,)) as worker:
        bench = Bench(worker)
        for entry in entries(database.load()):
            result = _verified(entry, tasks, bench, database)
            say(f"{entry.operator}, {entry.threads} thread(s): {'right' if result.ok else result.why}")
            found.append(result)
    return tuple(found)


def _verified(entry: Entry, tasks: dict[str, Any], bench: Bench, database: RecordDatabase) -> Verified:
    record, here = entry.best, host()
    if record is None:
        return Verified(entry, False, "no record that may be applied", checked=False)
    if record.fingerprint != here.fingerprint:
        return Verified(entry, False, f"measured on {record.machine}: verify it there", checked=False)
    func = tasks.get(operator_key(record.workload))
    task: Task | None = make_task(func, here, record.threads) if func is not None else None
    if task is None:
        return Verified(entry, False, f"its function is not in {WORKLOADS}", checked=False)
    try:
        schedule = build_schedule(task, record.decisions)
    except QimengError as error:
        return Verified(entry, False, str(error), checked=False)
    state = new_state(task, 0, [], "default")
    trial = Trial(f"{record.workload}/{record.schedule}", state, record.decisions, schedule, record.schedule, "verify")
    measured = bench.measure(job_of(trial))
    if measured.status in ("ok", "timing"):
        database.mark_verified(record)
        return Verified(entry, True)
    if measured.status == "numbers":
        database.mark_failed(record, measured.error)
    return Verified(entry, False, measured.error)


def _tasks(folder: Path) -> dict[str, Any]:
    """Return the functions that MetaSchedule's file holds, by workload key on one and on more threads."""
    found = {}
    for line in journal.read(folder / WORKLOADS):
        module = ms.database.Workload.from_json(json.loads(line)).mod
        func = module["main"] if isinstance(module, tvm.IRModule) else None
        if func is not None:
            for threads in range(1, host().cores + 1):
                found[workload_key(func, threads)] = func
    return found
