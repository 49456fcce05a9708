"""The prompt that has a model propose candidates and priors for a rule's decisions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qimeng_tvm.llm.prompts.render import Prompt, render, template

if TYPE_CHECKING:
    from qimeng_tvm.hardware.model import Hardware
    from qimeng_tvm.intrin import IntrinFamily
    from qimeng_tvm.schedule.apply import Task
    from qimeng_tvm.schedule.contract import BlockInfo, Decision, Value, Values

#: What the worked example is about: a request, and the profile of the machine.
EXAMPLE = ("f32 GEMM 1024x1024x1024 with weights", "zen5")


@dataclass(frozen=True)
class Seen:
    """One trial as it is told.

    Attributes
    ----------
    kind : str
        ``best``, ``worst``, ``last`` or ``failed``: why it is told.
    values : mapping
        Decisions: all of them of the fastest, of the others those that differ from it.
    seconds, of_best, of_peak : float, optional
        Time; speed as a share of the fastest's, and of the machine's measured peak.
    limits : tuple of str
        What it asks of registers and caches.
    fastest : bool
        The one that others are compared with.
    """

    kind: str
    values: Mapping[str, Value]
    seconds: float | None = None
    of_best: float | None = None
    of_peak: float | None = None
    limits: tuple[str, ...] = ()
    fastest: bool = False


@dataclass(frozen=True)
class History:
    """What was measured, and what came of earlier proposals.

    Attributes
    ----------
    trials : int
        In all.
    points : tuple of Seen
        Those worth telling.
    dropped : tuple of str
        What was not taken of earlier proposals.
    """

    trials: int
    points: tuple[Seen, ...] = ()
    dropped: tuple[str, ...] = ()


def proposal_prompt(
    task: Task,
    line: str,
    decisions: Sequence[Decision],
    most: int,
    path: Values | None = None,
    history: History | None = None,
) -> Prompt:
    """Return what a model is told to propose.

    Parameters
    ----------
    task : Task
        Operator, rule and machine.
    line : str
        The operator as people write it.
    decisions : sequence of Decision
        Those that leave a choice.
    most : int
        Candidates of one decision, at most.
    path : mapping, optional
        Decisions that are made already.
    history : History, optional
        What was measured so far.
    """
    from qimeng_tvm.schedule.blocking import WHOLE  # noqa: PLC0415 (it imports TVM)

    return render(
        "proposal",
        {
            "operator": _operator(task.info, line),
            "rule": {"name": task.rule.name, "version": task.rule.version, "doc": _first(task.rule)},
            "info": task.info,
            "machine": _machine(task.hardware),
            "families": _families(task),
            "decisions": decisions,
            "whole": WHOLE,
            "most": most,
            "path": _shown(path or {}, WHOLE),
            "history": history,
            "points": [_point(seen, WHOLE) for seen in history.points] if history is not None else [],
            "example": {
                "line": EXAMPLE[0],
                "machine": "32 registers of 512 bits, 48 KiB of L1, 1 MiB of L2",
                "answer": template("example_proposal.json.j2").strip(),
            },
        },
    )


def _shown(values: Values, whole: int) -> str:
    return ", ".join(f"{n}={'whole' if v == whole else v}" for n, v in values.items())


def _point(seen: Seen, whole: int) -> str:
    """Return a trial as a line."""
    shown = _shown(seen.values, whole) or "the same decisions"
    if seen.seconds is None or seen.of_best is None:
        return f"failed: {shown}"
    peak = f", {seen.of_peak:.1%} of peak" if seen.of_peak is not None else ""
    share = "" if seen.fastest else f", {seen.of_best:.1%} of the fastest's speed"
    names = {"best": "among the best", "worst": "among the slowest", "last": "lately"}
    name = "fastest" if seen.fastest else names[seen.kind]
    limits = f". It: {'; '.join(seen.limits)}" if seen.limits else ""
    return f"{name}, {_short(seen.seconds * 1e6)} us{peak}{share}: {shown}{limits}"


def _operator(info: BlockInfo, line: str) -> dict[str, Any]:
    from qimeng_tvm.schedule.estimate import WIDTH  # noqa: PLC0415

    def kib(rows: int, columns: int, dtype: str, batch: bool) -> str:
        return _short(rows * columns * WIDTH[dtype] * (info.batch if batch else 1) / 1024)

    return {
        "line": line,
        "mflop": _short(info.flops / 1e6),
        "a_kib": kib(info.m, info.k, info.a_dtype, info.batch_a),
        "b_kib": kib(info.k, info.n, info.b_dtype, info.batch_b),
        "c_kib": kib(info.m, info.n, info.out_dtype, True),
    }


def _machine(hardware: Hardware) -> dict[str, Any]:
    return {
        "cpu": hardware.cpu,
        "registers": hardware.vector_registers,
        "bits": hardware.vector_bits,
        "fma": hardware.pipeline.fma,
        "load": hardware.pipeline.load,
        "latency": hardware.pipeline.latency,
        "cores": hardware.cores,
        "caches": [
            {"level": c.level, "kib": c.size // 1024, "line": c.line, "shared_by": c.shared_by} for c in hardware.caches
        ],
    }


def _families(task: Task) -> list[dict[str, Any]]:
    """Return the facts of the micro-kernels that the space speaks of, where it speaks of any."""
    from qimeng_tvm.intrin import families  # noqa: PLC0415

    named = [d for d in task.space.decisions if d.name == "family"]
    known = families()
    return [_family(known[key]) for d in named for v in d.candidates if (key := str(v)) in known]


def _family(family: IntrinFamily) -> dict[str, Any]:
    from qimeng_tvm.schedule.estimate import WIDTH  # noqa: PLC0415

    return {
        "key": family.key,
        "lanes": family.lanes,
        "registers": family.registers,
        "k_pack": family.k_pack,
        "a_bytes": WIDTH[family.storage[0]],
        "b_bytes": WIDTH[family.storage[1]],
    }


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _first(rule: object) -> str:
    """First sentence about a rule."""
    return " ".join((inspect.getdoc(type(rule)) or "").split("\n\n")[0].split())
