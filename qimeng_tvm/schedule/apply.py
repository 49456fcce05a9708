"""Find the rule for a function and run it with chosen values."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from tvm import IRModule, s_tir, tirx

from qimeng_tvm.errors import QimengError, ScheduleError
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule.analysis import LAYOUT_FREE
from qimeng_tvm.schedule.contract import BlockInfo, Choose, ScheduleRule, SearchSpace, Value, Values
from qimeng_tvm.schedule.readers import analyze, normalize

ROOT = "qimeng_tvm.schedules"
#: What :func:`build_schedule` may raise: TVM raises nearly anything for a step that it cannot take.
REFUSALS = (QimengError, RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError)
#: Where a constant operand comes from at every call; see :class:`Task`.
NEAR, L3, MEMORY = "near", "L3", "memory"
#: Elements of a tensor up to which int32 indexes it, padding included.
_NARROW = 1 << 30


@cache
def rules() -> tuple[ScheduleRule, ...]:
    """Return one instance of every shipped rule, the more special (higher ``priority``) first."""
    found: dict[str, ScheduleRule] = {}
    package = importlib.import_module(ROOT)
    for info in pkgutil.walk_packages(package.__path__, ROOT + "."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, ScheduleRule) and value.__module__ == info.name:
                rule = value()
                found[rule.name] = rule
    return tuple(sorted(found.values(), key=lambda r: (-r.priority, r.name)))


def rule(name: str) -> ScheduleRule:
    """Return the rule of that name.

    Raises
    ------
    ScheduleError
        If there is none.
    """
    for known in rules():
        if known.name == name:
            return known
    raise ScheduleError(f"no schedule rule {name!r}; known: {', '.join(r.name for r in rules())}")


@dataclass(frozen=True)
class Task:
    """One function to schedule on one machine: everything a strategy needs.

    Attributes
    ----------
    func : tvm.tirx.PrimFunc
        As fused, before any schedule.
    info : BlockInfo
        Its anchor.
    hardware : Hardware
        The machine.
    rule : ScheduleRule
        The first rule that matches.
    space : SearchSpace
        The rule's decisions with analytic defaults.
    weights : str
        Where a constant operand is when the operator is called again: ``NEAR``, where the last call left it, or ``L3``
        or ``MEMORY``, where a model has read so much else in between.
    """

    func: tirx.PrimFunc
    info: BlockInfo
    hardware: Hardware
    rule: ScheduleRule
    space: SearchSpace
    weights: str = NEAR


def narrow_indices(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Index with int32 where that cannot overflow.

    TVM narrows the loops of Relax's int64 functions itself, but later, and drops the annotations that ask for
    peeled edges on the way: every store at an edge of C would then be a checked scalar one, in all tiles.
    """
    shapes = [getattr(p, "shape", ()) for p in func.params]
    static = all(isinstance(x, tirx.IntImm) for shape in shapes for x in shape)
    wide = any(str(getattr(p, "dtype", "")) == "int64" for p in func.params)  # data, not indices: TVM refuses it
    if not static or wide or max(math.prod(int(x) for x in shape) for shape in shapes) > _NARROW:
        return func
    module = tirx.transform.ForceNarrowIndexToInt32()(IRModule({"main": func}))
    return module["main"]


def make_task(func: tirx.PrimFunc, hardware: Hardware, threads: int = 1, weights: str = NEAR) -> Task | None:
    """Return the task for a function, or None when no shipped rule serves it; ``weights`` as in :class:`Task`."""
    func = narrow_indices(func)
    info = analyze(func, threads)
    if info is None:
        return None
    for candidate in rules():
        if candidate.match(info, hardware):
            near = weights if (func.attrs or {}).get(LAYOUT_FREE) else NEAR
            return Task(func, info, hardware, candidate, candidate.space(info, hardware), near)
    return None


def recording_choose(sch: s_tir.Schedule, space: SearchSpace, values: Values) -> Choose:
    """Answer a rule's questions from ``values``; each answer becomes a sampling step of the trace."""
    by_name = {d.name: d for d in space.decisions}
    asked: dict[str, Value] = {}

    def choose(name: str) -> Value:
        if name not in asked:
            decision = by_name[name]
            count = len(decision.candidates)
            index = decision.candidates.index(values[name])
            sch.sample_categorical(list(range(count)), [1.0 / count] * count, decision=index)
            asked[name] = values[name]
        return asked[name]

    return choose


def build_schedule(task: Task, values: Mapping[str, Value] | None = None) -> s_tir.Schedule:
    """Run the task's rule with ``values`` (default: the analytic decisions) and return the schedule.

    Raises
    ------
    ScheduleError
        If the values are not legal, or TVM refuses one of the rule's steps.
    """
    chosen = {**task.space.defaults(), **(values or {})}
    task.space.check(chosen)
    sch = s_tir.Schedule(task.func)
    block = normalize(sch, task.info.kind)
    if block is None:
        raise ScheduleError(f"{task.rule.name}: the function no longer has the anchor {task.info.name!r}")
    choose = recording_choose(sch, task.space, chosen)
    try:
        task.rule.apply(sch, block, choose, task.info, task.hardware)
    except s_tir.ScheduleError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ScheduleError(f"{task.rule.name} with {chosen}: {lines[-1].strip()}") from error
    return sch
