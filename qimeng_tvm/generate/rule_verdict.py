"""Judge a reply that should hold a schedule rule: form -> source -> read -> space -> build -> numbers -> audit.

The model's Python runs in one worker; the functions that it scheduled come back as data, and are built and checked in
another one as any operator is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qimeng_tvm.check.audit import AuditReport, audit
from qimeng_tvm.check.numbers import NumbersReport
from qimeng_tvm.check.source import check_source
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.compiler import export_library
from qimeng_tvm.errors import CheckError, QimengError
from qimeng_tvm.generate.answer import code_of
from qimeng_tvm.generate.checked import Checked
from qimeng_tvm.generate.rule_operators import checked_operators, left_alone
from qimeng_tvm.generate.rule_policy import rule_policy
from qimeng_tvm.generate.rule_sandbox import Offered, Scheduled
from qimeng_tvm.generate.rules import RuleTask
from qimeng_tvm.generate.verdict import ACCEPTED, told
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule.prepack import Operator, split_prepack

#: What an answer goes through, in order.
STAGES = ("form", "source", "read", "space", "build", "numbers", "audit")
_SANDBOX = "qimeng_tvm.generate.rule_sandbox"
_SECONDS = 300.0
#: Drawn decisions of each operator, beside the default ones.
_DRAWS = 2
_SEED = 7


@dataclass(frozen=True)
class RuleVerdict:
    """What came of a reply.

    Attributes
    ----------
    stage, findings, source : str
        As in :class:`~qimeng_tvm.generate.verdict.Verdict`.
    checked : int
        Operators (with their decisions) that were right.
    """

    stage: str
    findings: str = ""
    source: str = ""
    checked: int = 0

    @property
    def ok(self) -> bool:
        """Whether the reply passed every stage."""
        return self.stage == ACCEPTED


def judge_rule(
    reply: str, task: RuleTask, hardware: Hardware, *, truncated: bool = False, seconds: float = _SECONDS
) -> RuleVerdict:
    """Judge a reply on this machine.

    Parameters
    ----------
    reply : str
        To the letter.
    task : RuleTask
        What was asked for.
    hardware : Hardware
        This machine.
    truncated : bool
        The server says that the reply is not whole.
    seconds : float
        For its Python to schedule all operators, and for each check.

    Raises
    ------
    CheckError
        If this machine has no micro-kernel to check the rule with.
    """
    answer = code_of(reply, truncated)
    if answer.problem:
        return RuleVerdict("form", answer.problem)
    source = answer.source
    found = check_source(source, rule_policy(task))
    if found:
        return RuleVerdict("source", "\n".join(map(str, found[:8])), source)
    operators = served_operators(task, hardware)
    with Worker(preload=("tvm",)) as sandbox:
        stage, problem = _declared(sandbox, source, task, operators, hardware, seconds)
        if problem:
            return RuleVerdict(stage, problem, source)
        drawn = (source, task.module, operators, hardware, _DRAWS, _SEED)
        scheduled = sandbox.call(f"{_SANDBOX}:schedule", drawn, seconds)
    problem = told(scheduled) or _left_out(scheduled.value, operators) or _without_intrinsics(scheduled.value)
    if problem:
        return RuleVerdict("build", problem, source)
    return _run(scheduled.value, task, source, seconds)


def served_operators(task: RuleTask, hardware: Hardware) -> tuple[Checked, ...]:
    """Return the operators of a rule's check that this machine has micro-kernels for, and the cores.

    Raises
    ------
    CheckError
        If there are none.
    """
    found = tuple(o for o in checked_operators(task) if o.served(hardware, task.tensorized))
    if not found:
        raise CheckError(f"{hardware.name} has no micro-kernel to check {task.name} with")
    return found


def _declared(
    sandbox: Worker, source: str, task: RuleTask, operators: Sequence[Checked], hardware: Hardware, seconds: float
) -> tuple[str, str]:
    """Return the stage and the problem of what a rule says of itself; no problem when it is right."""
    facts = sandbox.call(f"{_SANDBOX}:declare_rule", (source, task.module), seconds)
    problem = told(facts)
    if problem:
        return "read", problem
    wanted = {"name": task.name, "version": task.version, "priority": task.priority}
    wrong = [f"{k} is {facts.value.get(k)!r}; it must be {v!r}" for k, v in wanted.items() if facts.value.get(k) != v]
    if wrong:
        return "read", "\n".join(wrong)
    beyond = left_alone(task, operators[0])
    asked = (source, task.module, (*operators, *beyond), hardware, task.other)
    answers = sandbox.call(f"{_SANDBOX}:offered", asked, seconds)
    problem = told(answers)
    if problem:
        return "space", problem
    offers: list[Offered] = answers.value
    problems = [p for o, offer in zip(operators, offers, strict=False) if (p := _offer_problem(o, offer, task))]
    if beyond and offers[-1].matches:
        problems.append(f"it matches {beyond[0].label}: it is for at most {task.rows} rows")
    return "space", "\n".join(problems[:3])


def _offer_problem(operator: Checked, offer: Offered, task: RuleTask) -> str:
    if not offer.matches:
        return f"it does not match {operator.label}"
    if offer.matches_other:
        told_apart = " ".join(f"{name} {value}" for name, value in task.other.items())
        return f"it matches an operator of {told_apart}, which it cannot compute"
    missing = [name for name in task.decisions if name not in offer.decisions]
    if missing:
        return f"{operator.label}: the space lacks the decisions {', '.join(missing)}"
    return f"{operator.label}: the defaults are not legal: {offer.problem}" if offer.problem else ""


def _left_out(made: Sequence[Scheduled], operators: Sequence[Checked]) -> str:
    """Say what of the work is missing: what comes back is believed to be of the operators that it was asked for."""
    found = list(dict.fromkeys(one.operator for one in made))
    return "" if found == list(operators) else "the functions that came back are not those of the operators"


def _without_intrinsics(made: Sequence[Scheduled]) -> str:
    for one in made:
        # Values of this decision that name no family have no dot.
        family = str(one.values.get("family", ""))
        if "." in family and not any(family in name for name in one.intrins):
            return f"{_where(one)}: nothing was tensorized with a micro-kernel"
    return ""


def _where(one: Scheduled) -> str:
    return f"{one.operator.label} with {', '.join(f'{k}={v}' for k, v in one.values.items())}"


def _run(made: Sequence[Scheduled], task: RuleTask, source: str, seconds: float) -> RuleVerdict:
    """Build and check every scheduled function."""
    with Worker(preload=("tvm",)) as checker:
        for number, one in enumerate(made):
            outcome = checker.call("qimeng_tvm.generate.rule_verdict:check_scheduled", (one, task.tensorized), seconds)
            if outcome.kind == "refused":
                raise CheckError(f"{_where(one)} could not be checked: {outcome.message}")
            if not outcome.ok:
                return RuleVerdict("numbers", f"{_where(one)}: {outcome.kind}: {outcome.message}", source, number)
            stage, problem = outcome.value
            if problem:
                return RuleVerdict(stage, f"{_where(one)}: {problem}", source, number)
    return RuleVerdict(ACCEPTED, "", source, len(made))


def check_scheduled(one: Scheduled, tensorized: bool) -> tuple[str, str]:
    """Build, run and audit a scheduled function: what runs in the worker. Return stage and problem."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "operator.so"
        try:
            operator = _library(one, path)
        except (RuntimeError, ValueError, TypeError, QimengError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return "build", f"TVM cannot build it: {' '.join(lines[-2:])[-500:]}"
        report: NumbersReport = one.operator.check(path, operator)
        if not report.ok:
            return "numbers", f"{report.kind}: {report.message}"
        # Small panels beside a short loop over k: LLVM may copy them by memcpy. Nobody would choose such decisions.
        # Where there is no micro-kernel, all that is done may be to copy.
        may_call = one.drawn or not tensorized
        code: AuditReport = audit(path, one.operator.mnemonics(one.intrins), may_call=may_call)
    return "audit", "; ".join(code.problems)


def _library(one: Scheduled, path: Path) -> Operator:
    import tvm  # noqa: PLC0415 (only in the worker)

    from qimeng_tvm.hardware import host, target_of  # noqa: PLC0415
    from qimeng_tvm.lowering import build  # noqa: PLC0415

    operator = split_prepack(tvm.ir.load_json(one.module))
    export_library(build(operator.module, target_of(host(), one.operator.cores)), path)
    return operator
