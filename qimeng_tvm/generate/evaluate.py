"""How well a model does: tasks x samples, each through the loop until an answer passes every check."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from qimeng_tvm.errors import CheckError, TranscriptError, UsageError
from qimeng_tvm.generate.loop import Judged, Subject, write
from qimeng_tvm.generate.tasks import IntrinsicTask
from qimeng_tvm.generate.verdict import ACCEPTED
from qimeng_tvm.hardware import Hardware, load, names
from qimeng_tvm.llm.messages import Client, Reply
from qimeng_tvm.llm.prompts.render import Prompt
from qimeng_tvm.llm.transcript import Transcript, read_transcript

Say = Callable[[str], None]


@dataclass(frozen=True)
class Attempt:
    """One sample of one task.

    Attributes
    ----------
    stages : tuple of str
        Where each round stopped.
    findings : str
        Of the last round: what was wrong, or how fast it is.
    score : float
        Speed of the accepted answer as its judge gives it; 0 when it was not timed, or none was accepted.
    prompt_tokens, completion_tokens : int
        As the client counted them.
    """

    stages: tuple[str, ...]
    findings: str
    score: float
    prompt_tokens: int
    completion_tokens: int

    @property
    def first(self) -> bool:
        """Whether the very first answer passed."""
        return self.stages[:1] == (ACCEPTED,)

    @property
    def solved(self) -> bool:
        """Whether an answer passed."""
        return ACCEPTED in self.stages

    @property
    def rounds(self) -> int:
        """Rounds until an answer passed, or all that there were."""
        return self.stages.index(ACCEPTED) + 1 if self.solved else len(self.stages)


@dataclass(frozen=True)
class TaskResult:
    """All samples of one task.

    Attributes
    ----------
    task : str
        Its label.
    machine : str
        On what it was checked.
    attempts : tuple of Attempt
        In order; empty when the task could not be checked here.
    skipped : str
        Why not.
    """

    task: str
    machine: str
    attempts: tuple[Attempt, ...] = ()
    skipped: str = ""

    def pass_at(self, k: int) -> float | None:
        """Return the chance that one of ``k`` first answers passes; None with fewer samples.

        The unbiased estimator of Chen et al., "Evaluating Large Language Models Trained on Code" (2021).
        """
        n, right = len(self.attempts), sum(a.first for a in self.attempts)
        if n < k:
            return None
        return 1.0 - math.comb(n - right, k) / math.comb(n, k)

    @property
    def score(self) -> float:
        """Best speed of the accepted answers."""
        return max((a.score for a in self.attempts), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "task": self.task,
            "machine": self.machine,
            "skipped": self.skipped,
            "pass@1": self.pass_at(1),
            "pass@3": self.pass_at(3),
            "solved": sum(a.solved for a in self.attempts),
            "attempts": [{**asdict(a), "rounds": a.rounds} for a in self.attempts],
        }


def evaluate(
    subjects: Sequence[Subject],
    client: Client,
    out: Path,
    *,
    samples: int = 1,
    rounds: int = 3,
    jobs: int = 8,
    say: Say = lambda _: None,
) -> tuple[TaskResult, ...]:
    """Put every task to a model several times.

    Parameters
    ----------
    subjects : sequence of Subject
        The tasks.
    client : Client
        Who answers; asked by ``jobs`` conversations at once.
    out : Path
        Folder of the transcripts, one for each task and sample; those that are there are not asked for again.
    samples, rounds : int
        Independent conversations for each task, and answers in each, at most.
    jobs : int
        Conversations that wait for answers at once; the checks run one after another.
    say : callable
        Told of every round.
    """
    turn = Lock()

    def attempt(subject: Subject, sample: int) -> Attempt | str:
        path = out / f"{subject.label.rsplit(' ', 1)[-1]}.{sample + 1}.json"
        try:
            done = write(
                _OneAtATime(subject, turn),
                client,
                rounds=rounds,
                sample=sample,
                path=path,
                satisfied=lambda judged: judged.ok,
                say=say,
            ).transcript
        except CheckError as error:
            return str(error)
        except TranscriptError:
            # Recorded answers end where the conversation ended then.
            if not path.exists():
                raise
            done = read_transcript(path)
        return attempt_of(done)

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [[pool.submit(attempt, s, i) for i in range(samples)] for s in subjects]
        return tuple(_result(s, [f.result() for f in row]) for s, row in zip(subjects, waiting, strict=True))


def machine_for(task: IntrinsicTask) -> Hardware:
    """Return the machine that a task is put to a model for: this one, or the first profile that has what it takes.

    Raises
    ------
    UsageError
        If no profile has.
    """
    fitting = [m for m in map(load, names()) if task.runs_on(m)]
    if not fitting:
        raise UsageError(f"no hardware profile has what {task.key} requires ({', '.join(task.requires)})")
    return fitting[0]


def attempt_of(transcript: Transcript) -> Attempt:
    """Return what a transcript says of a sample."""
    rounds = transcript.rounds
    best = rounds[transcript.best] if transcript.best >= 0 else rounds[-1]
    return Attempt(
        tuple(r.verdict for r in rounds),
        best.findings,
        best.speed or 0.0,
        sum(r.prompt_tokens for r in rounds),
        sum(r.completion_tokens for r in rounds),
    )


def _result(subject: Subject, attempts: Sequence[Attempt | str]) -> TaskResult:
    reasons = [a for a in attempts if isinstance(a, str)]
    if reasons:
        return TaskResult(subject.label, subject.machine, skipped=reasons[0])
    return TaskResult(subject.label, subject.machine, tuple(a for a in attempts if isinstance(a, Attempt)))


@dataclass(frozen=True)
class _OneAtATime:
    """A subject whose checks wait for their turn: they time things."""

    subject: Subject
    turn: Lock

    @property
    def label(self) -> str:
        return self.subject.label

    @property
    def prompt(self) -> Prompt:
        return self.subject.prompt

    @property
    def machine(self) -> str:
        return self.subject.machine

    def judge(self, reply: Reply, timed: bool = True) -> Judged:
        with self.turn:
            return self.subject.judge(reply, timed)


def summary(results: Sequence[TaskResult]) -> dict[str, float | int]:
    """Return the figures over all tasks that could be checked."""
    done = [r for r in results if r.attempts]
    if not done:
        raise UsageError("none of the tasks could be checked on this machine")
    ones = [p for r in done if (p := r.pass_at(1)) is not None]
    threes = [p for r in done if (p := r.pass_at(3)) is not None]
    solved = [a for r in done for a in r.attempts if a.solved]
    return {
        "tasks": len(done),
        "samples": sum(len(r.attempts) for r in done),
        "pass@1": sum(ones) / len(ones),
        "pass@3": sum(threes) / len(threes) if threes else float("nan"),
        "solved": len(solved) / sum(len(r.attempts) for r in done),
        "rounds": sum(a.rounds for a in solved) / len(solved) if solved else float("nan"),
    }
