"""What rules begin with, as text for a model: functions after the passes and the reader, and their decisions."""

from __future__ import annotations

from dataclasses import dataclass, fields

from qimeng_tvm.generate.checked import Checked
from qimeng_tvm.generate.rule_operators import shown_operators
from qimeng_tvm.generate.rule_sandbox import info_of
from qimeng_tvm.generate.rules import RuleTask
from qimeng_tvm.hardware.model import Hardware


@dataclass(frozen=True)
class Anchor:
    """One function as a rule finds it.

    Attributes
    ----------
    label : str
        The operator.
    text : str
        The function, in TVMScript.
    info : str
        What the rule is told of it.
    """

    label: str
    text: str
    info: str


def anchors_of(task: RuleTask, hardware: Hardware) -> tuple[Anchor, ...]:
    """Return small functions of a task's kind as a rule finds them."""
    return tuple(_anchor(operator, hardware) for operator in shown_operators(task))


def _anchor(operator: Checked, hardware: Hardware) -> Anchor:
    from tvm import s_tir  # noqa: PLC0415 (slow to import)

    from qimeng_tvm.schedule.readers import normalize  # noqa: PLC0415 (imports TVM)

    func, info = info_of(operator, hardware)
    sch = s_tir.Schedule(func)
    normalize(sch, info.kind)
    lines = [line for line in sch.mod["main"].script().splitlines() if line.strip() and not line.startswith("#")]
    told = {f.name: getattr(info, f.name) for f in fields(info) if getattr(info, f.name) != f.default}
    return Anchor(operator.label, "\n".join(lines), ", ".join(f"{name}={value!r}" for name, value in told.items()))


def decisions_of(task: RuleTask, hardware: Hardware) -> tuple[dict[str, str], ...]:
    """Return names, meanings and values of the decisions of the first function that is shown."""
    from qimeng_tvm.schedule.apply import rule  # noqa: PLC0415 (imports TVM)

    operator = shown_operators(task)[0]
    info = info_of(operator, hardware)[1]
    space = rule(task.name).space(info, hardware)
    return tuple(
        {"name": d.name, "doc": d.doc, "candidates": ", ".join(map(repr, d.candidates[:8])), "default": repr(d.default)}
        for d in space.decisions
    )
