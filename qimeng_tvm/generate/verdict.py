"""Judge a reply that should hold an intrinsic family: every stage believes only what the ones before it found out.

form -> source -> read -> declaration -> build -> numbers -> audit; the speed is measured of what passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from qimeng_tvm.check.emulator import Emulator, emulator_for
from qimeng_tvm.check.intrinsic import FamilyReport, examine_pair, example_variants
from qimeng_tvm.check.source import check_source
from qimeng_tvm.check.worker import Outcome, Worker
from qimeng_tvm.errors import CheckError, IntrinError
from qimeng_tvm.generate.answer import code_of
from qimeng_tvm.generate.policy import family_policy
from qimeng_tvm.generate.sandbox import Pair, SourceError
from qimeng_tvm.generate.tasks import IntrinsicTask
from qimeng_tvm.hardware import host
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily

#: What an answer goes through, in order.
STAGES = ("form", "source", "read", "declaration", "build", "numbers", "audit")
ACCEPTED = "accepted"
#: What passed every check but those that run it, on a machine that cannot.
NOT_RUN = "not run here"
#: Stages at which an answer that is not run could still stop elsewhere.
RUN_STAGES = ("numbers", ACCEPTED)
#: Most registers that a family may ask for beside its tile.
_SCRATCH = 8
_SECONDS = 120.0


@dataclass(frozen=True)
class Verdict:
    """What came of a reply.

    Attributes
    ----------
    stage : str
        The stage that refused it, or ``accepted``.
    findings : str
        What is wrong, to be fed back; empty when nothing is.
    source : str
        The code of the reply; empty when it holds none.
    family : IntrinFamily, optional
        What it declares; its builder is not to be called here.
    reports : tuple of FamilyReport
        One for each intrinsic that was checked.
    """

    stage: str
    findings: str = ""
    source: str = ""
    family: IntrinFamily | None = None
    reports: tuple[FamilyReport, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the reply passed every stage."""
        return self.stage == ACCEPTED


def judge(
    reply: str,
    task: IntrinsicTask,
    hardware: Hardware,
    *,
    truncated: bool = False,
    run: bool = True,
    seconds: float = _SECONDS,
    checker: Worker | None = None,
) -> Verdict:
    """Judge a reply.

    Parameters
    ----------
    reply : str
        To the letter.
    task : IntrinsicTask
        What was asked for.
    hardware : Hardware
        What it is written for; it must have what the task requires.
    truncated : bool
        The server says that the reply is not whole.
    run : bool
        Whether it must be run to be accepted. Else, on a machine that cannot run it, all the other checks are made.
    seconds : float
        For its Python to build what is checked, and for each check.
    checker : Worker, optional
        Where what was built is checked: one that may serve many replies, for none of their Python runs there.

    Raises
    ------
    CheckError
        If nothing could be found out: the hardware does not suit the task, or this machine cannot run it.
    """
    if not task.runs_on(hardware):
        raise CheckError(f"{hardware.name} cannot run {task.key}: it lacks {lacking(task, hardware)}")
    emulator = None if task.runs_on(host()) else _emulator(task, hardware, needed=run)
    answer = code_of(reply, truncated)
    if answer.problem:
        return Verdict("form", answer.problem)
    source = answer.source
    found = check_source(source, family_policy(task))
    if found:
        return Verdict("source", "\n".join(map(str, found[:8])), source)
    # A worker of its own: what this source does to its Python ends with it.
    with Worker(preload=("tvm",)) as sandbox:
        return _built(source, task, hardware, sandbox, checker, emulator, seconds)


def _emulator(task: IntrinsicTask, hardware: Hardware, needed: bool) -> Emulator | None:
    """Return what runs the task's code in place of this machine; None if it is not needed and there is none."""
    try:
        return emulator_for(hardware)
    except CheckError as error:
        if needed:
            lacks = lacking(task, host())
            raise CheckError(f"this machine cannot run {task.key}: it lacks {lacks}; {error}") from error
        return None


def lacking(task: IntrinsicTask, hardware: Hardware) -> str:
    """Say what a machine lacks for a task."""
    return ", ".join(sorted(set(task.requires) - hardware.features)) or f"the instruction set {task.isa}"


def _built(
    source: str,
    task: IntrinsicTask,
    hardware: Hardware,
    sandbox: Worker,
    checker: Worker | None,
    emulator: Emulator | None,
    seconds: float,
) -> Verdict:
    declared = sandbox.call("qimeng_tvm.generate.sandbox:declare", (source, task.module), seconds)
    problem = told(declared)
    if problem:
        return Verdict("read", problem, source)
    facts = declared.value
    differences = declaration_problems(facts, task)
    if differences:
        return Verdict("declaration", "\n".join(differences), source)
    family = IntrinFamily(**{**facts, "build": _not_here})
    try:
        variants = example_variants(family)
    except IntrinError as error:
        return Verdict("declaration", str(error), source)
    pairs = sandbox.call("qimeng_tvm.generate.sandbox:build", (source, task.module, variants), seconds)
    problem = told(pairs)
    if problem:
        return Verdict("build", problem, source, family)
    run = emulator is not None or task.runs_on(host())
    with nullcontext(checker) if checker is not None else Worker(preload=("tvm",)) as own:
        return _examined(own, family, variants, pairs.value, source, hardware, run, emulator, seconds)


def _examined(
    checker: Worker,
    family: IntrinFamily,
    variants: Sequence[Mapping[str, int]],
    pairs: Sequence[Pair],
    source: str,
    hardware: Hardware,
    run: bool,
    emulator: Emulator | None,
    seconds: float,
) -> Verdict:
    reports: list[FamilyReport] = []
    for values, pair in zip(variants, pairs, strict=True):
        report = examine_pair(
            checker,
            family,
            values,
            (pair.desc, pair.impl),
            hardware=hardware,
            timeout=seconds,
            max_spills=0,
            run=run,
            emulator=emulator,
        )
        reports.append(report)
        if not report.ok:
            stage = "numbers" if not report.numbers.ok else "audit"
            where = f"{family.kind}({', '.join(f'{k}={v}' for k, v in values.items())}): {report.problem}"
            return Verdict(stage, where, source, family, tuple(reports))
    return Verdict(ACCEPTED if run else NOT_RUN, "", source, family, tuple(reports))


def told(outcome: Outcome) -> str:
    """Say what a model's code did wrong; empty when it returned."""
    if not outcome.ok:
        return f"{outcome.kind}: {outcome.message}"
    if isinstance(outcome.value, SourceError):
        error = outcome.value
        where = f"line {error.line}: " if error.line else ""
        called = f", called with {', '.join(f'{k}={v}' for k, v in error.values.items())}" if error.values else ""
        return f"{where}{error.text}{called}"
    return ""


def declaration_problems(facts: Mapping[str, Any], task: IntrinsicTask) -> list[str]:
    """Return what a family declares otherwise than its task says."""
    wanted: dict[str, Any] = {
        "isa": task.isa,
        "kind": task.kind,
        "requires": task.requires,
        "dtypes": task.dtypes,
        "storage": task.storage,
        "lanes": task.lanes,
        "registers": task.registers,
        "k_pack": task.k_pack,
        "k_step": task.k_step,
        "uops": task.uops,
        "latency": task.latency,
        "mnemonics": task.mnemonics,
        "parameters": task.parameters,
        "version": task.version,
    }
    found = [
        f"{name} is {facts.get(name)!r}; it must be {value!r}"
        for name, value in wanted.items()
        if facts.get(name) != value
    ]
    for name in ("scratch", "scratch_columns", "column_uops"):
        value = facts.get(name)
        if not isinstance(value, int) or not 0 <= value <= _SCRATCH:
            found.append(f"{name} is {value!r}; it is a number from 0 to {_SCRATCH}")
    return found


def _not_here(*_: int) -> tuple[Any, Any]:
    raise CheckError("a family from a model is built in its own worker, not here")
