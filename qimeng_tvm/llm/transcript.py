"""Recorded conversations: what was asked, what was answered to the letter, and what the checks said of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qimeng_tvm.errors import TranscriptError
from qimeng_tvm.files import write_atomic
from qimeng_tvm.llm.messages import Message, Reply, Request, Usage


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Said(_Strict):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


class Round(_Strict):
    """One request and its answer.

    Attributes
    ----------
    purpose, key, digest : str
        Of the request.
    asked : tuple of Said
        The turns that the request added to the conversation (all of them in the first round).
    reply : str
        To the letter.
    truncated : bool
        The server said that it is not whole.
    verdict : str
        The stage that refused the answer, or ``accepted``.
    findings : str
        What the checks said, as it was fed back; empty when accepted.
    speed : float
        Of the machine's peak, where it was measured.
    prompt_tokens, completion_tokens : int
        Where the server told.
    """

    purpose: str
    key: str
    digest: str
    asked: tuple[Said, ...]
    reply: str
    truncated: bool = False
    verdict: str = ""
    findings: str = ""
    speed: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Transcript(_Strict):
    """A conversation from the first request to the artefact.

    Attributes
    ----------
    format : int
        Of this file.
    task : str
        What was to be written: ``intrinsic x86.avx2_f32``.
    prompt : str
        Name and version of the prompt: ``intrinsic@1``.
    model : str
        Who answered.
    machine : str
        On what the checks ran.
    date : str
        ISO date of the last round.
    rounds : tuple of Round
        All of them, failures included.
    best : int
        Index of the round whose answer was kept; -1: none was.
    header : str
        Facts that the artefact's header tells of its checks (machine, speed), as they were found then.
    """

    format: Literal[1] = 1
    task: str
    prompt: str
    model: str
    machine: str = ""
    date: str = ""
    rounds: tuple[Round, ...] = ()
    best: int = -1
    header: str = ""

    def write(self, path: Path) -> None:
        """Write it in one step.

        Raises
        ------
        TranscriptError
            If the file cannot be written.
        """
        try:
            write_atomic(path, self.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise TranscriptError(f"cannot write the transcript {path}: {error.strerror or error}") from error


def read_transcript(path: Path) -> Transcript:
    """Read a transcript.

    Raises
    ------
    TranscriptError
        If there is none, or it is not one.
    """
    try:
        return Transcript.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TranscriptError(f"cannot read the transcript {path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(x) for x in first["loc"]) or "the whole"
        raise TranscriptError(f"{path} is not a transcript: {where}: {first['msg']}") from error


def said(messages: Iterable[Message]) -> tuple[Said, ...]:
    """Return turns as a transcript keeps them."""
    return tuple(Said(**asdict(m)) for m in messages)


@dataclass(frozen=True)
class _Known:
    path: Path
    model: str
    round: Round


class Recorded:
    """Answers by what was asked.

    A request is known by its text, or else by where it stands in its conversation (its key): what the checks measured
    on another machine is in the text, and changes nothing about the answer that was given.

    Parameters
    ----------
    transcripts : iterable of (Path, Transcript)
        Where they come from, and what they hold.
    """

    def __init__(self, transcripts: Iterable[tuple[Path, Transcript]]) -> None:
        self.all = [_Known(path, t.model, r) for path, t in transcripts for r in t.rounds]
        self._by_digest = {k.round.digest: k for k in self.all}
        self._by_key = {k.round.key: k for k in self.all if k.round.key}

    def find(self, request: Request) -> Reply | None:
        """Return the recorded answer; None where there is none."""
        known = self._by_digest.get(request.digest) or self._by_key.get(request.key)
        if known is None:
            return None
        r = known.round
        return Reply(r.reply, known.model, Usage(1, r.prompt_tokens, r.completion_tokens), r.truncated)


class ReplayClient:
    """Answers from transcripts.

    Parameters
    ----------
    folder : Path
        Of transcripts, searched with its sub-folders.

    Raises
    ------
    TranscriptError
        If there are none, or one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.rglob("*.json")) if folder.is_dir() else []
        if not paths:
            raise TranscriptError(f"no transcripts in {folder}: give the folder that holds them (replay:FOLDER)")
        self._folder = folder
        self._transcripts = {path: read_transcript(path) for path in paths}
        self._recorded = Recorded(self._transcripts.items())

    @property
    def name(self) -> str:
        """For people."""
        return f"replay ({self._folder})"

    def transcript(self, task: str) -> Transcript:
        """Return the conversation about a task.

        Raises
        ------
        TranscriptError
            If there is none; it names the nearest task that there is.
        """
        for transcript in self._transcripts.values():
            if transcript.task == task:
                return transcript
        tasks = sorted({t.task for t in self._transcripts.values()})
        near = difflib.get_close_matches(task, tasks, n=1, cutoff=0.3)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise TranscriptError(f"{task} was never recorded in {self._folder}{hint}; record it with another client")

    def ask(self, request: Request) -> Reply:
        """Return the recorded answer.

        Raises
        ------
        TranscriptError
            If the request was never recorded; it names the nearest one that was.
        """
        reply = self._recorded.find(request)
        if reply is None:
            raise TranscriptError(f"{request.purpose} was never recorded{self._nearest(request)}")
        return reply

    def _nearest(self, request: Request) -> str:
        purposes = {k.round.purpose: k for k in self._recorded.all}
        near = difflib.get_close_matches(request.purpose, purposes, n=1, cutoff=0.3)
        if not near:
            return f" in {self._folder}"
        known = purposes[near[0]]
        same = known.round.purpose == request.purpose
        why = "with another prompt or other answers before it" if same else "nearest"
        return f": {near[0]} in {known.path} is {why}; record it with another client"
