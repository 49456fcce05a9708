"""What is known of a rule's other operators before a run: this machine's records, and shipped measurements."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule.apply import Task
from qimeng_tvm.search.cost import Group, RuleModel
from qimeng_tvm.search.features import block_of, block_row
from qimeng_tvm.search.records import Record, RecordDatabase, current, rule_id, task_key

#: Folder of shipped measurements: ``<isa>.jsonl``, a line an operator.
SHIPPED = "prior"


@dataclass(frozen=True, eq=False)
class Known:
    """Measured points of one operator.

    Attributes
    ----------
    rule, profile : str
        ``name@version``; profile of the machine.
    block : Mapping
        As in a record.
    points : tuple of (decisions, seconds)
        Infinity where one gave no time.
    """

    rule: str
    profile: str
    block: Mapping[str, Any]
    points: tuple[tuple[Mapping[str, int | str], float], ...]


def rule_models(
    tasks: Sequence[Task], database: RecordDatabase, seed: int, *, shipped: bool = True
) -> dict[str, RuleModel]:
    """Return one model a rule of the tasks, with what is known of other operators.

    Parameters
    ----------
    tasks : sequence of Task
        Of one machine; their own records are left to them.
    database : RecordDatabase
        Earlier runs.
    seed : int
        Of the trees.
    shipped : bool
        Whether to use the shipped measurements too.
    """
    own = {task_key(t) for t in tasks}
    models = {}
    for task in tasks:
        rule = rule_id(task)
        if rule not in models:
            records = [
                r
                for r in database.load()
                if r.rule == rule and r.fingerprint == task.hardware.fingerprint and r.workload not in own
            ]
            groups = [*recorded_groups(records, task.hardware), *(shipped_groups(task) if shipped else ())]
            models[rule] = RuleModel(seed, groups)
    return models


def recorded_groups(records: Iterable[Record], hardware: Hardware) -> list[Group]:
    """Return the measured points of records, operator by operator; those without a block are left out."""
    groups: dict[str, Group] = {}
    for record in records:
        info = block_of(dict(record.block))
        if info is None or record.status == "schedule" or not current(record):
            continue
        row = block_row(record.decisions, info, hardware)
        if row is not None:
            groups.setdefault(record.workload, Group()).add(row, record.seconds_min)
    return list(groups.values())


def shipped_groups(task: Task) -> tuple[Group, ...]:
    """Return the shipped points of a task's rule on machines of its instruction set; nobody adds to them."""
    return _shipped(rule_id(task), shipped_measurements(task.hardware.isa))


@cache
def _shipped(rule: str, measurements: tuple[Known, ...]) -> tuple[Group, ...]:
    groups = []
    for known in measurements:
        info = block_of(dict(known.block))
        if known.rule != rule or info is None:
            continue
        hardware, group = _profile(known.profile), Group()
        for values, seconds in known.points:
            row = block_row(values, info, hardware)
            if row is not None:
                group.add(row, seconds)
        groups.append(group)
    return tuple(groups)


@cache
def shipped_measurements(isa: str) -> tuple[Known, ...]:
    """Return what is shipped for an instruction set; nothing where nothing is."""
    file = resources.files("qimeng_tvm.search") / SHIPPED / f"{isa}.jsonl"
    if not file.is_file():
        return ()
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(read_known(line) for line in lines)


def read_known(line: str) -> Known:
    """Read a line of shipped measurements: decisions are named once, and each point has their values and its time."""
    told = json.loads(line)
    names = told["names"]
    points = tuple(
        (dict(zip(names, values, strict=True)), float("inf") if seconds is None else float(seconds))
        for *values, seconds in told["points"]
    )
    return Known(told["rule"], told["profile"], told["block"], points)


def write_known(known: Known) -> str:
    """Return the line of an operator's measurements."""
    names = list(known.points[0][0]) if known.points else []
    points = [[*(values[n] for n in names), None if s == float("inf") else s] for values, s in known.points]
    told = {"rule": known.rule, "profile": known.profile, "block": dict(known.block), "names": names, "points": points}
    return json.dumps(told, separators=(",", ":"))


@cache
def _profile(name: str) -> Hardware:
    return Hardware.load(name)
