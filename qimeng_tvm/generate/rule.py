"""Have a model write a schedule rule: its judge, with the speed, and the head of the file."""

from __future__ import annotations

import datetime
import inspect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import geometric_mean

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import CheckError, ScheduleError
from qimeng_tvm.generate.checked import Checked
from qimeng_tvm.generate.loop import Judged
from qimeng_tvm.generate.reference import modules_in
from qimeng_tvm.generate.rule_operators import timed_operators
from qimeng_tvm.generate.rule_sandbox import info_of, schedule_with
from qimeng_tvm.generate.rule_verdict import STAGES, judge_rule
from qimeng_tvm.generate.rules import RuleTask
from qimeng_tvm.generate.verdict import ACCEPTED
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.llm.messages import Reply
from qimeng_tvm.llm.prompts.render import Prompt
from qimeng_tvm.llm.prompts.rule import rule_prompt
from qimeng_tvm.schedule import ScheduleRule

_SECONDS = 300.0
#: Share of the reference's speed that is fast enough.
ENOUGH = 0.97


@dataclass(frozen=True)
class RuleSubject:
    """A rule to be written.

    Attributes
    ----------
    task : RuleTask
        Which.
    hardware : Hardware
        This machine.
    reference : ScheduleRule, optional
        What its speed is compared with: one of ours, already trusted.
    """

    task: RuleTask
    hardware: Hardware
    reference: ScheduleRule | None = None

    @property
    def label(self) -> str:
        """``rule cpu.gemm``."""
        return f"rule {self.task.name}"

    @property
    def machine(self) -> str:
        """On what the answers are checked."""
        return f"{self.hardware.name} ({self.hardware.cpu})"

    @cached_property
    def prompt(self) -> Prompt:
        """What the model is told first."""
        return rule_prompt(self.task, self.hardware)

    def judge(self, reply: Reply, timed: bool = True) -> Judged:
        """Check an answer, and measure it when it passed."""
        verdict = judge_rule(reply.text, self.task, self.hardware, truncated=reply.truncated)
        if not verdict.ok:
            return Judged(verdict.stage, STAGES.index(verdict.stage), verdict.findings, verdict.source)
        ratios = self.measure(verdict.source) if timed else {}
        mean = geometric_mean(ratios.values()) if ratios else 0.0
        told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        return Judged(
            ACCEPTED,
            len(STAGES),
            f"Speed beside a rule that is known to be good (1.00 is the same): {told}." if ratios else "",
            verdict.source,
            score=mean,
            enough=mean >= ENOUGH or not ratios,
            header=self._header(verdict.checked, mean),
        )

    def measure(self, source: str) -> dict[str, float]:
        """Return how fast the operators are beside those of the reference, with default decisions."""
        if self.reference is None:
            return {}
        operators = tuple(o for o in timed_operators(self.task) if self._serves(o))
        with Worker(preload=("tvm",)) as sandbox:
            args = (source, self.task.module, operators, self.hardware, 0, 0)
            made = sandbox.call("qimeng_tvm.generate.rule_sandbox:schedule", args, _SECONDS)
        if not made.ok or not isinstance(made.value, list):
            raise CheckError(f"{self.task.name} could not be applied a second time: {made.message or made.value}")
        theirs = schedule_with(self.reference, operators, self.hardware, 0, 0)
        with Worker(preload=("tvm",)) as worker:
            pair = (made.value, theirs)
            timed = worker.call("qimeng_tvm.generate.speed:compare_operators", pair, _SECONDS)
        if not timed.ok:
            raise CheckError(f"{self.task.name} could not be timed: {timed.message}")
        return {o.name: ratio for o, ratio in zip(operators, timed.value, strict=True)}

    def _serves(self, operator: Checked) -> bool:
        assert self.reference is not None
        return operator.cores <= self.hardware.cores and self.reference.match(
            info_of(operator, self.hardware)[1], self.hardware
        )

    def _header(self, checked: int, ratio: float) -> str:
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        speed = f"# speed: {ratio:.2f} of the reference\n" if ratio else ""
        return f"# checked on: {self.machine}, {today}: {checked} operators right\n{speed}"


def reference_rule(task: RuleTask, folder: Path | None = None) -> ScheduleRule | None:
    """Return the trusted rule of a task's name: the shipped one, or the one in a folder (it is imported here).

    Raises
    ------
    ScheduleError
        If the folder has none.
    """
    if folder is None:
        from qimeng_tvm.schedule.apply import rules  # noqa: PLC0415

        return next((r for r in rules() if r.name == task.name), None)
    for module in modules_in(folder):
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, ScheduleRule) and value.__module__ == module.__name__:
                rule = value()
                if rule.name == task.name:
                    return rule
    raise ScheduleError(f"no rule {task.name} in {folder}")
