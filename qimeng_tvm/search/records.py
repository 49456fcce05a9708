"""The tuning database: MetaSchedule's two JSON files and our side-car, in one folder.

The side-car ``qimeng_records.jsonl`` holds what TVM's records lack: the machine, versions, decisions, whether the
result was verified, and failed trials with their reason. It alone decides what is applied; TVM's files are there for
TVM's own tools.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import tvm_ffi
from pydantic import ConfigDict, TypeAdapter, ValidationError
from tvm import tirx

from qimeng_tvm.errors import IntrinError, RecordError, ScheduleError
from qimeng_tvm.files import write_atomic
from qimeng_tvm.intrin.contract import IntrinName
from qimeng_tvm.intrin.registry import family
from qimeng_tvm.schedule.analysis import LAYOUT_FREE
from qimeng_tvm.schedule.apply import L3, MEMORY, NEAR, Task
from qimeng_tvm.schedule.contract import Value, Values
from qimeng_tvm.search import journal

SCHEMA = 1
SIDECAR = "qimeng_records.jsonl"
WORKLOADS = "database_workload.json"
TRACES = "database_tuning_record.json"

#: Where a trial ended: measured, or refused by the schedule, the build, the run, the numbers or the clock.
Status = Literal["ok", "schedule", "build", "run", "numbers", "timing"]
#: What may differ between functions that are the same operator: names, and how fusion classed them.
_KEPT_ATTRS = ("s_tir", "tirx.noalias", LAYOUT_FREE)


@dataclass(frozen=True)
class Record:
    """One trial, as the side-car keeps it.

    Attributes
    ----------
    workload : str
        :func:`task_key` of the operator.
    fingerprint : str
        ``Hardware.fingerprint`` of the machine.
    rule : str
        ``name@version``.
    intrins : tuple of str
        Canonical names of the intrinsics in the schedule: family, parameters, version.
    decisions : Mapping[str, int or str]
        The rule's decisions, by name and value.
    status : str
        ``ok``, or what refused it; then ``error`` says why and there are no times.
    verified : bool
        The whole operator with these decisions was checked; see :meth:`RecordDatabase.mark_verified`.
    schedule : str
        Structural hash of the scheduled function: other decisions may amount to the same.
    block : Mapping[str, int, bool, str or mapping]
        The operator's extents, types and layouts, as :func:`qimeng_tvm.search.features.told_of` makes them: what the
        cost model learns from for other operators.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    workload: str
    fingerprint: str
    rule: str
    decisions: Mapping[str, Value]
    status: Status = "ok"
    seconds_min: float | None = None
    seconds_median: float | None = None
    gflops: float | None = None
    verified: bool = False
    error: str = ""
    intrins: tuple[str, ...] = ()
    schedule: str = ""
    block: Mapping[str, bool | int | str | Mapping[str, int | list[int]]] = field(default_factory=dict)
    operator: str = ""
    machine: str = ""
    threads: int = 1
    strategy: str = ""
    seed: int = 0
    tvm: str = ""
    qimeng: str = ""
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    schema: int = SCHEMA

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two records the same trial."""
        return (self.workload, self.fingerprint, self.rule, self.intrins, tuple(sorted(self.decisions.items())))

    def to_line(self) -> bytes:
        """Return the record as one line of JSON."""
        mappings = {"decisions": dict(self.decisions), "block": dict(self.block)}
        return json.dumps({**asdict(replace(self, decisions={}, block={})), **mappings}).encode()


_READER = TypeAdapter(Record)


def workload_key(func: tirx.PrimFunc, threads: int) -> str:
    """Return the name of an operator in the database: the same for the command line and for a model."""
    attrs = dict(func.attrs or {})
    bare = func
    for name in attrs:
        if name not in _KEPT_ATTRS:
            bare = bare.without_attr(name)
    if not list(attrs.get(LAYOUT_FREE, [])) and LAYOUT_FREE in attrs:
        bare = bare.without_attr(LAYOUT_FREE)
    return f"{_hash(bare)}-t{threads}"


def task_key(task: Task) -> str:
    """Return the name of a task in the database.

    Times of an operator whose weights are in the caches, and of one that has them come from further away, do not
    compare: the latter are under a name of their own.
    """
    return _named(workload_key(task.func, task.info.threads), task.weights)


def _named(key: str, weights: str) -> str:
    return key if weights == NEAR else f"{key}-{weights}"


def operator_key(workload: str) -> str:
    """Return the :func:`workload_key` that a :func:`task_key` is made from."""
    return "-".join(workload.split("-")[:2])


def schedule_key(mod: Any) -> str:
    """Return the structural hash of a scheduled module."""
    return _hash(mod)


def _hash(node: Any) -> str:
    return f"{int(tvm_ffi.structural_hash(node)) & (2**64 - 1):016x}"


def rule_id(task: Task) -> str:
    """``name@version`` of the task's rule."""
    return f"{task.rule.name}@{task.rule.version}"


class RecordDatabase:
    """The records of one folder.

    Parameters
    ----------
    folder : path
        Made when the first record is written.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.path = self.folder / SIDECAR
        self._seen: tuple[int, int] | None = None
        self._records: tuple[Record, ...] = ()

    def load(self) -> tuple[Record, ...]:
        """Return every record, the latest of each trial, in the order they were first written.

        Raises
        ------
        RecordError
            If the file is damaged elsewhere than at its end, or of another version.
        """
        stamp = self._stamp()
        if stamp is None:
            return ()
        if stamp != self._seen:
            found: dict[tuple[object, ...], Record] = {}
            for number, line in enumerate(journal.read(self.path), 1):
                record = self._parse(line, number)
                found[record.key] = record
            self._records, self._seen = tuple(found.values()), stamp
        return self._records

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RecordError(f"cannot read {self.path} ({error.strerror or error})") from error
        return status.st_size, status.st_mtime_ns

    def _parse(self, line: bytes, number: int) -> Record:
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                raise ValueError("it is not an object")
        except ValueError as error:
            raise RecordError(
                f"{self.path} line {number} is damaged ({error}): remove that line, or the file to tune afresh"
            ) from None
        if content.get("schema") != SCHEMA:
            raise RecordError(
                f"{self.path} line {number} has schema {content.get('schema')!r}, this version reads {SCHEMA}: "
                "use another database folder, or the version that wrote it"
            )
        try:
            # As JSON text: strict mode takes lists for tuples only from there.
            record = _READER.validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(x) for x in first["loc"])
            raise RecordError(
                f"{self.path} line {number} is damaged ({where}: {first['msg']}): remove that line, "
                "or the file to tune afresh"
            ) from None
        return replace(record, decisions=MappingProxyType(dict(record.decisions)))

    def append(self, *records: Record, tvm_record: tuple[bytes, bytes] | None = None) -> None:
        """Add records; they are on disk when this returns.

        Parameters
        ----------
        records : Record
            To add; one of a trial that is known already supersedes it.
        tvm_record : (bytes, bytes), optional
            MetaSchedule's workload and record lines of the trial, as :class:`~qimeng_tvm.search.traces.TraceWriter`
            makes them.
        """
        with journal.locked(self.folder):
            if tvm_record is not None:
                self._append_tvm(*tvm_record)
            journal.repair(self.path)
            journal.append(self.path, [r.to_line() for r in records])

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replace all records, in one step; MetaSchedule's own files stay as they are.

        Raises
        ------
        RecordError
            If they cannot be written.
        """
        with journal.locked(self.folder):
            try:
                write_atomic(self.path, "".join(f"{r.to_line().decode()}\n" for r in records))
            except OSError as error:
                raise RecordError(
                    f"cannot write {self.path} ({error.strerror or error}): free space or choose another folder"
                ) from error
        self._seen = None

    def _append_tvm(self, workload: bytes, record: bytes) -> None:
        """Add to TVM's files, whose records name the line number of their workload."""
        workloads, traces = self.folder / WORKLOADS, self.folder / TRACES
        for path in (workloads, traces):
            journal.repair(path)
        known = journal.read(workloads)
        if workload in known:
            index = known.index(workload)
        else:
            index = len(known)
            journal.append(workloads, [workload])
        journal.append(traces, [b"[%d,%s]" % (index, record)])

    def repair(self) -> None:
        """Mend what a killed writer left at the end of any of the three files."""
        if self.folder.is_dir():
            with journal.locked(self.folder):
                for name in (WORKLOADS, TRACES, SIDECAR):
                    journal.repair(self.folder / name)

    def of_task(self, task: Task) -> list[Record]:
        """Return what was recorded for this operator, machine, and versions of rule and families; nothing else."""
        return self._matching(task, task_key(task))

    def _matching(self, task: Task, workload: str) -> list[Record]:
        fingerprint, rule = task.hardware.fingerprint, rule_id(task)
        return [
            r
            for r in self.load()
            if r.workload == workload and r.fingerprint == fingerprint and r.rule == rule and current(r)
        ]

    def best(self, task: Task, verified_only: bool = True) -> Record | None:
        """Return the fastest record that may be applied to the task; None when there is none.

        A record of another machine, rule version or family version is never returned, nor one whose decisions
        are no longer legal. One that was measured with the weights elsewhere is, where there is no other.
        """
        key = workload_key(task.func, task.info.threads)
        # The task's own, then the others.
        for weights in sorted((MEMORY, L3, NEAR), key=lambda w: w != task.weights):
            fitting = [
                r
                for r in self._matching(task, _named(key, weights))
                if r.status == "ok" and r.seconds_min is not None and (r.verified or not verified_only)
            ]
            for record in sorted(fitting, key=lambda r: r.seconds_min or float("inf")):
                if _legal(task, record.decisions):
                    return record
        return None

    def mark_verified(self, record: Record) -> Record:
        """Note that the whole operator with these decisions passed its checks."""
        verified = replace(record, verified=True)
        self.append(verified)
        return verified

    def mark_failed(self, record: Record, reason: str) -> Record:
        """Note that the operator with these decisions failed its checks: it is never applied again."""
        failed = replace(record, verified=False, status="numbers", error=reason)
        self.append(failed)
        return failed


def current(record: Record) -> bool:
    """Tell whether the installed families are the versions that the record was measured with."""
    try:
        names = [IntrinName.parse(name) for name in record.intrins]
        return all(family(name.key).version == name.version for name in names)
    except IntrinError:
        return False


def _legal(task: Task, values: Values) -> bool:
    try:
        task.space.check(values)
    except ScheduleError:
        return False
    return True
