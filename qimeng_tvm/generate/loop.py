"""Write -> judge -> feed back, until it is good enough or the rounds are used up; the best answer is kept.

The loop knows nothing of what is written: a `Subject` brings the prompt and the judge. Every round goes into a
transcript, failures included, and the transcript is written after each one, so that nothing is lost and the same
command goes on where it was.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qimeng_tvm.errors import GenerateError, TranscriptError
from qimeng_tvm.generate.verdict import ACCEPTED, NOT_RUN, RUN_STAGES
from qimeng_tvm.llm.messages import Client, Message, Reply, Request, digest
from qimeng_tvm.llm.prompts.render import Prompt
from qimeng_tvm.llm.transcript import Recorded, Round, Transcript, read_transcript, said

Say = Callable[[str], None]


@dataclass(frozen=True)
class Judged:
    """What the checks said of an answer.

    Attributes
    ----------
    stage : str
        The stage that refused it, or ``accepted``.
    rank : int
        How far it came; larger is further.
    findings : str
        What is fed back: what is wrong, or how fast it is.
    source : str
        The code of the answer; empty when it holds none.
    score : float
        Of accepted answers: speed, larger is better.
    enough : bool
        Nothing better is hoped for.
    header : str
        Facts for the head of the file, comment lines.
    """

    stage: str
    rank: int
    findings: str
    source: str = ""
    score: float = 0.0
    enough: bool = False
    header: str = ""

    @property
    def ok(self) -> bool:
        """Whether it passed every check."""
        return self.stage == ACCEPTED

    @property
    def order(self) -> tuple[int, float]:
        """Sorts answers, the best last."""
        return self.rank, self.score


class Subject(Protocol):
    """Something that a model writes."""

    @property
    def label(self) -> str:
        """``intrinsic x86.avx2_f32``: the task, whatever machine it runs on."""

    @property
    def prompt(self) -> Prompt:
        """What the model is told first."""

    @property
    def machine(self) -> str:
        """On what the answers are checked."""

    def judge(self, reply: Reply, timed: bool = True) -> Judged:
        """Check an answer, and measure it, if it passed and that is wanted."""


@dataclass(frozen=True)
class Conversation:
    """One line of answers.

    Attributes
    ----------
    messages : tuple of Message
        Whose last is the user's.
    replies : tuple of str
        So far.
    shown : int
        Messages that the transcript holds already.
    best : Judged, optional
        Of its answers.
    """

    messages: tuple[Message, ...]
    replies: tuple[str, ...] = ()
    shown: int = 0
    best: Judged | None = None

    def after(self, reply: str, judged: Judged) -> Conversation:
        """Return the conversation with an answer and what was said to it."""
        messages = (*self.messages, Message("assistant", reply), Message("user", feedback(judged)))
        best = judged if self.best is None or judged.order > self.best.order else self.best
        return Conversation(messages, (*self.replies, reply), len(self.messages) + 1, best)


@dataclass(frozen=True)
class Written:
    """What came of a loop.

    Attributes
    ----------
    transcript : Transcript
        Every round.
    best : Judged, optional
        The best accepted answer; none if none was accepted.
    """

    transcript: Transcript
    best: Judged | None

    @property
    def text(self) -> str:
        """The file: header and source.

        Raises
        ------
        GenerateError
            If no answer was accepted.
        """
        if self.best is None:
            last = self.transcript.rounds[-1]
            raise GenerateError(
                f"no answer to {self.transcript.task} passed the checks in {len(self.transcript.rounds)} rounds; "
                f"the last stopped at {last.verdict}: {' '.join(last.findings.split())[:300]}"
            )
        return self.transcript.header + self.best.source


def feedback(judged: Judged) -> str:
    """Return what a model is told of its answer."""
    if judged.ok:
        said_of_it = f"Every check passed. {judged.findings}\n\nMake it faster if you see how."
    else:
        said_of_it = f"Refused at the stage '{judged.stage}'.\n\n{judged.findings}"
    return f"{said_of_it}\n\nAnswer with the whole module again in one Python code block and nothing else."


def request_of(subject: Subject, conversation: Conversation, sample: int) -> Request:
    """Return the next request of a conversation; its key does not depend on the machine or on measured figures."""
    number = len(conversation.replies) + 1
    of_sample = f", sample {sample + 1}" if sample else ""
    return Request(
        purpose=f"{subject.label}, round {number}{of_sample}",
        messages=conversation.messages,
        key=digest(subject.label, sample, [digest(r) for r in conversation.replies]),
        sample=sample,
    )


def write(
    subject: Subject,
    client: Client,
    *,
    rounds: int = 4,
    beam: int = 1,
    sample: int = 0,
    path: Path | None = None,
    satisfied: Callable[[Judged], bool] = lambda judged: judged.enough,
    say: Say = lambda _: None,
) -> Written:
    """Have a model write something.

    Parameters
    ----------
    subject : Subject
        What to write.
    client : Client
        Who answers.
    rounds : int
        Answers in a row, at most.
    beam : int
        Conversations kept side by side; after each round the worse half starts again from the best one.
    sample : int
        Which of several independent attempts this is; the first of the beam.
    path : Path, optional
        Of the transcript, written after every round. Answers that it holds already are not asked for again.
    satisfied : callable
        Whether an answer ends the loop.
    say : callable
        Told of every round.

    Raises
    ------
    LLMError
        If the client gives no answer; what was got so far is in the transcript.
    """
    known = _Resumed(client, path)
    lines = [Conversation((Message("user", subject.prompt.text),)) for _ in range(beam)]
    record = _Record(subject, path)
    for _ in range(rounds):
        for i, line in enumerate(lines):
            request = request_of(subject, line, sample + i)
            reply = known.ask(request)
            judged = subject.judge(reply)
            record.add(request, line, reply, judged)
            say(f"{request.purpose}: {judged.stage}. {' '.join(judged.findings.split())[:200]}")
            lines[i] = line.after(reply.text, judged)
        if any(line.best is not None and satisfied(line.best) for line in lines):
            break
        lines = _kept(lines)
    return record.written()


def _kept(lines: Sequence[Conversation]) -> list[Conversation]:
    """Return the better half of a beam, each as often as the beam stays as wide."""
    ranked = sorted(lines, key=lambda c: c.best.order if c.best is not None else (-1, 0.0), reverse=True)
    half = ranked[: (len(ranked) + 1) // 2]
    return [half[i % len(half)] for i in range(len(ranked))]


@dataclass
class _Record:
    """The transcript as it grows."""

    subject: Subject
    path: Path | None
    rounds: list[Round] = field(default_factory=list)
    best: Judged | None = None
    best_round: int = -1
    model: str = ""

    def add(self, request: Request, line: Conversation, reply: Reply, judged: Judged) -> None:
        first = not self.rounds or line.shown > 0
        self.rounds.append(
            Round(
                purpose=request.purpose,
                key=request.key,
                digest=request.digest,
                asked=said(request.messages[line.shown :]) if first else (),
                reply=reply.text,
                truncated=reply.truncated,
                verdict=judged.stage,
                findings=judged.findings,
                speed=round(judged.score, 4) if judged.ok else None,
                prompt_tokens=reply.usage.prompt_tokens,
                completion_tokens=reply.usage.completion_tokens,
            )
        )
        self.model = reply.model
        if judged.ok and (self.best is None or judged.order > self.best.order):
            self.best, self.best_round = judged, len(self.rounds) - 1
        if self.path is not None:
            self.transcript().write(self.path)

    def transcript(self) -> Transcript:
        return Transcript(
            task=self.subject.label,
            prompt=self.subject.prompt.label,
            model=self.model,
            machine=self.subject.machine,
            date=_today(),
            rounds=tuple(self.rounds),
            best=self.best_round,
            header=self._header(),
        )

    def _header(self) -> str:
        if self.best is None:
            return ""
        prompt = self.subject.prompt.label
        took = len(self.rounds)
        return (
            f"# author: {self.model}, prompt {prompt}, {took} {'round' if took == 1 else 'rounds'}, "
            f"the answer of round {self.best_round + 1}\n{self.best.header}"
        )

    def written(self) -> Written:
        return Written(self.transcript(), self.best)


class _Resumed:
    """A client that gives the answers of an unfinished transcript again before it asks for more."""

    def __init__(self, client: Client, path: Path | None) -> None:
        self._client = client
        self._known = Recorded([(path, read_transcript(path))] if path is not None and path.exists() else [])

    def ask(self, request: Request) -> Reply:
        return self._known.find(request) or self._client.ask(request)


def replay(subject: Subject, transcript: Transcript, timed: bool = False, say: Say = lambda _: None) -> Written:
    """Go through a transcript again: every answer is judged anew, and the file comes out as it did then.

    Parameters
    ----------
    subject : Subject
        What was written.
    transcript : Transcript
        The conversation.
    timed : bool
        Time the answer that was kept, on this machine, and tell its speed in the transcript and the head of the file.
        Else nothing is timed, what they tell stays, and an answer that this machine cannot run goes through the checks
        that need not run it.
    say : callable
        Told of every round.

    Raises
    ------
    TranscriptError
        If the checks say now of any answer that they stop at another stage than they did.
    """
    best: Judged | None = None
    for index, recorded in enumerate(transcript.rounds):
        kept = index == transcript.best
        reply = Reply(recorded.reply, transcript.model, truncated=recorded.truncated)
        judged = subject.judge(reply, timed=timed and kept)
        say(f"{recorded.purpose}: {judged.stage}. {' '.join(judged.findings.split())[:200]}")
        if judged.stage != recorded.verdict and not (judged.stage == NOT_RUN and recorded.verdict in RUN_STAGES):
            found = " ".join(judged.findings.split())[:300]
            raise TranscriptError(
                f"{recorded.purpose} stopped at '{recorded.verdict}' when it was recorded, "
                f"and at '{judged.stage}' now: {found}"
            )
        if kept:
            best = judged
    if timed and best is not None:
        transcript = _told_anew(subject, transcript, best)
    return Written(transcript, best)


def _told_anew(subject: Subject, transcript: Transcript, best: Judged) -> Transcript:
    """Return a transcript with what the checks say now of the answer that was kept; what was fed back then stays."""
    rounds = list(transcript.rounds)
    kept = rounds[transcript.best]
    last = transcript.best == len(rounds) - 1
    rounds[transcript.best] = kept.model_copy(
        update={"speed": round(best.score, 4), "findings": best.findings if last else kept.findings}
    )
    author = transcript.header.partition("\n")[0]
    return transcript.model_copy(
        update={
            "machine": subject.machine,
            "date": _today(),
            "rounds": tuple(rounds),
            "header": f"{author}\n{best.header}",
        }
    )


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
