"""Have a model write a tensorize intrinsic family: its judge, with the speed, and the head of the file."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import geometric_mean
from typing import Any

from qimeng_tvm.check.intrinsic import spec_of
from qimeng_tvm.check.tile import IntrinsicSpec
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import CheckError
from qimeng_tvm.generate.loop import Judged
from qimeng_tvm.generate.sandbox import Pair
from qimeng_tvm.generate.speed import Speed, as_seen_by, density, timed_variants
from qimeng_tvm.generate.tasks import IntrinsicTask
from qimeng_tvm.generate.verdict import ACCEPTED, NOT_RUN, STAGES, Verdict, judge, lacking
from qimeng_tvm.hardware import host
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily
from qimeng_tvm.intrin.contract import LANEWISE
from qimeng_tvm.llm.messages import Reply
from qimeng_tvm.llm.prompts.render import Prompt, intrinsic_prompt

_PROMISE = re.compile(r"promise:\s*(\d+(?:\.\d+)?)\s*%")
_SECONDS = 180.0
#: Share of the reference's speed, or of the peak where there is no reference, that is fast enough.
ENOUGH, ENOUGH_OF_PEAK = 0.97, 0.9


@dataclass(frozen=True)
class Measured:
    """The speed of an accepted family.

    Attributes
    ----------
    own, reference : mapping
        Micro-kernel -> speed; the reference's are empty when there is none.
    timed : bool
        Whether they ran on such a machine; else the figures are read off the machine code.
    """

    own: Mapping[str, Speed]
    reference: Mapping[str, Speed]
    timed: bool = True

    @property
    def best(self) -> Speed:
        """The speed of the best tile."""
        return next(iter(self.own.values()))

    @property
    def ratio(self) -> float:
        """Geometric mean of own to reference speed over the kinds of micro-kernels, 0 without a reference."""
        pairs = list(zip(self.own.values(), self.reference.values(), strict=False))
        return geometric_mean(a.gops / b.gops for a, b in pairs) if pairs else 0.0


@dataclass(frozen=True)
class IntrinsicSubject:
    """A family to be written.

    Attributes
    ----------
    task : IntrinsicTask
        What.
    hardware : Hardware
        For whom.
    reference : IntrinFamily, optional
        What its speed is compared with: one of ours, already trusted.
    context : str
        Before the label, for answers that are recorded apart from the shipped ones.
    """

    task: IntrinsicTask
    hardware: Hardware
    reference: IntrinFamily | None = None
    context: str = ""

    @property
    def label(self) -> str:
        """``intrinsic x86.avx2_f32``."""
        return f"{self.context} intrinsic {self.task.key}".lstrip()

    @cached_property
    def prompt(self) -> Prompt:
        """What the model is told first."""
        return intrinsic_prompt(self.task, self.hardware)

    @property
    def machine(self) -> str:
        """On what the answers are checked."""
        return f"{self.hardware.name} ({self.hardware.cpu})"

    def judge(self, reply: Reply, timed: bool = True) -> Judged:
        """Check an answer, and measure it when it passed."""
        verdict = judge(reply.text, self.task, self.hardware, truncated=reply.truncated, run=timed)
        if verdict.stage == NOT_RUN:
            return Judged(NOT_RUN, len(STAGES) - 1, f"this machine lacks {lacking(self.task, host())}", verdict.source)
        if not verdict.ok:
            return Judged(verdict.stage, STAGES.index(verdict.stage), verdict.findings, verdict.source)
        if not timed:
            return Judged(ACCEPTED, len(STAGES), "", verdict.source)
        measured = self.measure(verdict)
        return Judged(
            ACCEPTED,
            len(STAGES),
            _told(measured, verdict.source, self.task, self.hardware),
            verdict.source,
            score=measured.ratio or measured.best.share,
            enough=_enough(measured),
            header=header(verdict, self, measured),
        )

    def measure(self, verdict: Verdict) -> Measured:
        """Time an accepted family in turns with the reference, or read both off their code where it cannot be run."""
        family = verdict.family
        assert family is not None
        wanted = timed_variants(family)
        with Worker(preload=("tvm",)) as sandbox:
            args = (verdict.source, self.task.module, tuple(wanted.values()))
            built = sandbox.call("qimeng_tvm.generate.sandbox:build", args, _SECONDS)
        if not built.ok or not isinstance(built.value, tuple):
            raise CheckError(f"{family.key} could not be built a second time: {built.message or built.value}")
        contenders = _specs("own", family, wanted, built.value, self.hardware)
        if self.reference is not None:
            theirs = timed_variants(self.reference)
            pairs = tuple(_trusted(self.reference, values) for values in theirs.values())
            contenders |= _specs("reference", self.reference, theirs, pairs, self.hardware)
        here, seen = self.task.runs_on(host()), as_seen_by(family, self.hardware)
        with Worker(preload=("tvm",)) as worker:
            if here:
                found = _answer(worker, "qimeng_tvm.generate.speed:time_intrinsics", contenders, seen)
            else:
                # All of them are compiled and audited, none is run.
                found = {
                    label: density(_answer(worker, "qimeng_tvm.check.tile:run_intrinsic", replace(spec, run=False))[1])
                    for label, spec in contenders.items()
                }
        return Measured(_of("own", found), _of("reference", found), here)


def _answer(worker: Worker, function: str, *arguments: Any) -> Any:
    outcome = worker.call(function, arguments, _SECONDS)
    if not outcome.ok:
        raise CheckError(f"the family could not be timed: {outcome.message}")
    return outcome.value


def _specs(
    whose: str,
    family: IntrinFamily,
    wanted: Mapping[str, Mapping[str, int]],
    pairs: tuple[Pair, ...],
    machine: Hardware,
) -> dict[str, IntrinsicSpec]:
    return {
        f"{whose} {label}": spec_of(family, values, (pair.desc, pair.impl), machine)
        for (label, values), pair in zip(wanted.items(), pairs, strict=True)
    }


def _of(whose: str, timed: Mapping[str, Speed]) -> dict[str, Speed]:
    return {label.removeprefix(f"{whose} "): s for label, s in timed.items() if label.startswith(whose)}


def _trusted(family: IntrinFamily, values: Mapping[str, int]) -> Pair:
    """Build one intrinsic of a family of ours."""
    import tvm  # noqa: PLC0415 (a second or two; most of this module does without)

    return Pair(*(tvm.ir.save_json(f) for f in family.build(*(values[p] for p in family.parameters))))


def _enough(measured: Measured) -> bool:
    if measured.reference:
        return measured.ratio >= ENOUGH
    # Nothing to hold it against is no reason to ask again.
    return not measured.timed or not measured.best.share or measured.best.share >= ENOUGH_OF_PEAK


def _told(measured: Measured, source: str, task: IntrinsicTask, hardware: Hardware) -> str:
    """Say how fast it is, against its own promise too."""
    if not measured.timed:
        return _told_statically(measured)
    # Of several instructions for each product some run on other ports: their cycles at peak are not known.
    cycles = 1 / hardware.pipeline.fma if task.uops == 1 else 0.0
    step = "tap" if task.kind == LANEWISE else "k step"
    lines = [_line(label, speed, cycles, step) for label, speed in measured.own.items()]
    promise = _PROMISE.search(source)
    if promise is not None:
        lines.append(f"The promise was {promise[1]} % of peak for the best tile.")
    if measured.reference:
        theirs = ", ".join(f"{label} {s.share:.0%}" for label, s in measured.reference.items())
        lines.append(f"A family that is known to be good has {theirs} of peak; yours is at {measured.ratio:.2f} of it.")
    return "\n".join(lines)


def _told_statically(measured: Measured) -> str:
    own = ", ".join(f"{label} {s.share:.2f}" for label, s in measured.own.items())
    text = f"Not timed (no such machine is here). Multiply-adds by instructions of the inner loop: {own}."
    if measured.reference:
        theirs = ", ".join(f"{label} {s.share:.2f}" for label, s in measured.reference.items())
        text += f" A family that is known to be good has {theirs}."
    return text


def _line(label: str, speed: Speed, cycles: float, step: str) -> str:
    """Say how fast a tile is; ``cycles`` is what a product of vectors takes at peak, 0: not known."""
    if not speed.share:
        return (
            f"Tile {label}: {speed.gops:.0f} operations a nanosecond (nothing here measures these instructions' peak)."
        )
    text = f"Tile {label}: {speed.share:.0%} of these instructions' measured peak"
    if label.startswith("1x") or not cycles:
        return f"{text}."
    rows, vectors = map(int, label.split(maxsplit=1)[0].split("x"))
    ideal = rows * vectors * cycles
    return f"{text}, {ideal / speed.share:.1f} cycles a {step} where {ideal:.1f} would be peak."


def _checked_on(subject: IntrinsicSubject, measured: Measured) -> str:
    if not measured.timed:
        return f"an emulator of {subject.machine}"
    here = host()
    if subject.hardware.fingerprint == here.fingerprint:
        return subject.machine
    return f"{here.name} ({here.cpu}) with code for {subject.machine}"


def header(verdict: Verdict, subject: IntrinsicSubject, measured: Measured) -> str:
    """Return what the head of the file tells of the checks, as comment lines."""
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    if measured.timed and measured.best.share:
        speeds = ", ".join(f"{label} {s.share:.0%}" for label, s in measured.own.items()) + " of peak"
    elif measured.timed:
        speeds = ", ".join(f"{label} {s.gops:.0f}" for label, s in measured.own.items()) + " operations a nanosecond"
    else:
        own = ", ".join(f"{label} {s.share:.2f}" for label, s in measured.own.items())
        speeds = f"not timed; multiply-adds by instructions of the inner loop {own}"
    lines = [
        f"instruction: {', '.join(m.split('|')[-1] for m in subject.task.mnemonics)} ({subject.task.title})",
        f"checked on: {_checked_on(subject, measured)}, {today}: {len(verdict.reports)} intrinsics right, no spills",
        f"speed: {speeds}" + (f"; {measured.ratio:.2f} of the reference" if measured.reference else ""),
    ]
    return "".join(f"# {line}\n" for line in lines)
