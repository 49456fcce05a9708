"""Run a model's schedule rule where it can do no harm, and bring back the functions it scheduled as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.generate.checked import Checked
from qimeng_tvm.generate.sandbox import SourceError, imported, source_error
from qimeng_tvm.hardware.model import Hardware

#: Tries to draw legal decisions.
_TRIES = 400


@dataclass(frozen=True)
class Scheduled:
    """One operator under one choice of decisions.

    Attributes
    ----------
    operator : Checked
        What it computes.
    values : mapping
        The decisions.
    module : str
        The scheduled function, as TVM's JSON.
    intrins : tuple of str
        Canonical names of the intrinsics in its trace.
    drawn : bool
        The decisions were drawn at random: legal, not good.
    """

    operator: Checked
    values: Mapping[str, int | str]
    module: str
    intrins: tuple[str, ...]
    drawn: bool = False


@dataclass(frozen=True)
class Offered:
    """What a rule says of one operator.

    Attributes
    ----------
    matches, matches_other : bool
        Whether it takes the operator, and one that it must leave alone.
    decisions : tuple of str
        Names; empty when it does not match.
    problem : str
        Why its defaults are not legal; empty when they are.
    """

    matches: bool
    matches_other: bool
    decisions: tuple[str, ...]
    problem: str


def declare_rule(source: str, module: str) -> dict[str, Any] | SourceError:
    """Read a rule's module and return what the rule declares."""
    try:
        rule = _rule(source, module)
        return {"name": rule.name, "version": rule.version, "priority": rule.priority}
    except Exception as error:  # whatever the model's code raises is an answer
        return source_error(error, {})


def offered(
    source: str, module: str, operators: Sequence[Checked], hardware: Hardware, other: Mapping[str, str]
) -> list[Offered] | SourceError:
    """Ask a rule for its decisions on some operators; ``other`` makes each into one that it must leave alone."""
    answers = []
    where: dict[str, Any] = {}
    try:
        rule = _rule(source, module)
        for operator in operators:
            where = {"operator": operator.label}
            info = info_of(operator, hardware)[1]
            foreign = bool(rule.match(replace(info, **other), hardware))
            if not rule.match(info, hardware):
                answers.append(Offered(False, foreign, (), ""))
                continue
            space = rule.space(info, hardware)
            answers.append(Offered(True, foreign, tuple(d.name for d in space.decisions), _illegal(space)))
    except Exception as error:  # as above
        return source_error(error, where)
    return answers


def schedule(
    source: str, module: str, operators: Sequence[Checked], hardware: Hardware, draws: int, seed: int
) -> list[Scheduled] | SourceError:
    """Schedule some operators with the default decisions, and with ``draws`` drawn ones each."""
    where: dict[str, Any] = {}
    try:
        return schedule_with(_rule(source, module), operators, hardware, draws, seed, where)
    except Exception as error:  # as above
        return source_error(error, where)


def schedule_with(
    rule: Any,
    operators: Sequence[Checked],
    hardware: Hardware,
    draws: int,
    seed: int,
    where: dict[str, Any] | None = None,
) -> list[Scheduled]:
    """Schedule some operators by a rule; ``where`` is told what is being done."""
    import tvm  # noqa: PLC0415 (imports of TVM belong to the worker)

    from qimeng_tvm.intrin import names_in  # noqa: PLC0415
    from qimeng_tvm.schedule.apply import Task, build_schedule  # noqa: PLC0415

    made: list[Scheduled] = []
    told = where if where is not None else {}
    for number, operator in enumerate(operators):
        func, info = info_of(operator, hardware)
        space = rule.space(info, hardware)
        task = Task(func, info, hardware, rule, space)
        for order, values in enumerate(_drawn(space, draws, np.random.default_rng([seed, number]))):
            told.clear()
            told.update({"operator": operator.label, **values})
            sch = build_schedule(task, values)
            text = "".join(tvm.ir.save_json(sch.mod["main"]))
            made.append(Scheduled(operator, values, text, names_in(str(sch.trace)), drawn=order > 0))
    return made


def _rule(source: str, module: str) -> Any:
    from qimeng_tvm.schedule.contract import ScheduleRule  # noqa: PLC0415

    loaded = imported(source, module)
    own = [
        v
        for v in vars(loaded).values()
        if isinstance(v, type) and issubclass(v, ScheduleRule) and v.__module__ == loaded.__name__
    ]
    if len(own) != 1:
        raise ValueError(f"the module must have one class derived from ScheduleRule; it has {len(own)}")
    return own[0]()


def info_of(operator: Checked, hardware: Hardware) -> tuple[Any, Any]:
    """Return the function of an operator, and its anchor."""
    from qimeng_tvm.hardware.target import target_of  # noqa: PLC0415
    from qimeng_tvm.schedule.apply import narrow_indices  # noqa: PLC0415
    from qimeng_tvm.schedule.readers import analyze  # noqa: PLC0415

    func = narrow_indices(operator.prim_func(target_of(hardware, operator.cores)))
    info = analyze(func, operator.cores)
    if info is None:
        raise ScheduleError(f"{operator.label} has no anchor; this is not the rule's fault")
    return func, info


def _illegal(space: Any) -> str:
    try:
        space.check(space.defaults())
    except ScheduleError as error:
        return str(error)
    return ""


def _drawn(space: Any, draws: int, rng: np.random.Generator) -> list[dict[str, int | str]]:
    """The defaults, and legal decisions drawn at random."""
    found = [space.defaults()]
    for _ in range(_TRIES):
        if len(found) > draws:
            break
        values = {d.name: d.candidates[int(rng.integers(len(d.candidates)))] for d in space.decisions}
        if space.illegal(values) is None:
            found.append(values)
    return found
