"""From a subject and a client to files: the family or rule, and the transcript behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qimeng_tvm.errors import GenerateError, UsageError
from qimeng_tvm.files import write_atomic
from qimeng_tvm.generate.loop import Subject, Written, replay, write
from qimeng_tvm.generate.reference import modules_in
from qimeng_tvm.generate.shipped import file_of
from qimeng_tvm.generate.tasks import IntrinsicTask
from qimeng_tvm.intrin import IntrinFamily, families
from qimeng_tvm.llm.budget import Budget, Metered
from qimeng_tvm.llm.messages import Client
from qimeng_tvm.llm.transcript import ReplayClient

Say = Callable[[str], None]


@dataclass(frozen=True)
class Produced:
    """Files that came out.

    Attributes
    ----------
    path, transcript : Path
        The family or rule; the conversation behind it.
    written : Written
        What is in them.
    """

    path: Path
    transcript: Path
    written: Written


def produce(
    subject: Subject,
    client: Client,
    out: Path,
    *,
    rounds: int = 4,
    beam: int = 1,
    budget: Budget | None = None,
    restart: bool = False,
    timed: bool = False,
    say: Say = lambda _: None,
) -> Produced:
    """Have something written, checked and put where it belongs.

    Parameters
    ----------
    subject : Subject
        What.
    client : Client
        Who answers; one that replays gives the very file that was recorded.
    out : Path
        A folder; the file lies there as in the repository: ``tensorize_intrins/x86/avx2_f32.py``, its transcript is
        ``transcripts/tensorize_intrins/x86/avx2_f32.json``.
    rounds, beam
        As in :func:`~qimeng_tvm.generate.loop.write`.
    budget : Budget, optional
        What it may spend.
    restart : bool
        Begin again though there is a transcript of an earlier run in ``out``.
    timed : bool
        Of recorded answers: time the one that was kept on this machine, see :func:`~qimeng_tvm.generate.loop.replay`.
    say : callable
        Told of every round.

    Raises
    ------
    GenerateError
        If no answer passed the checks; the transcript is kept.
    UsageError
        If answers that are not recorded are to be timed again.
    """
    if timed and not isinstance(client, ReplayClient):
        raise UsageError("--timed times recorded answers again (--llm replay); others are timed as they come")
    file = file_of(subject.label)
    path, transcript = out / file, (out / "transcripts" / file).with_suffix(".json")
    if isinstance(client, ReplayClient):
        written = replay(subject, client.transcript(subject.label), timed, say)
        _save(transcript, lambda: written.transcript.write(transcript))
    else:
        if restart:
            transcript.unlink(missing_ok=True)
        elif transcript.exists():
            say(f"going on from {transcript}")
        metered = Metered(client, budget or Budget(), transcript.with_suffix(".log"))
        written = write(subject, metered, rounds=rounds, beam=beam, path=transcript, say=say)
    text = written.text
    _save(path, lambda: write_atomic(path, text))
    return Produced(path, transcript, written)


def _save(path: Path, save: Callable[[], None]) -> None:
    try:
        save()
    except OSError as error:
        raise GenerateError(
            f"cannot write {path}: {error.strerror or error}; give another folder with --out"
        ) from error


def reference_for(task: IntrinsicTask, path: Path | None = None) -> IntrinFamily | None:
    """Return the family that a task's speed is compared with: of the same operands on the same instructions.

    Parameters
    ----------
    task : IntrinsicTask
        What is written.
    path : Path, optional
        A folder of trusted families (they are imported here) that come before the shipped ones.

    Raises
    ------
    GenerateError
        If there is no such folder, or what is in it cannot be imported.
    """
    known = [*(_families_in(path) if path is not None else ()), *families().values()]
    fitting = [
        f
        for f in known
        if f.kind.split("_")[0] == task.kind
        and (f.isa, f.dtypes, f.lanes, set(f.requires)) == (task.isa, task.dtypes, task.lanes, set(task.requires))
    ]
    return fitting[0] if fitting else None


def _families_in(folder: Path) -> list[IntrinFamily]:
    found = []
    for module in modules_in(folder):
        marked = (v for v in vars(module).values() if getattr(v, "__module__", None) == module.__name__)
        found += [f for v in marked if (f := getattr(v, "__qimeng_family__", None)) is not None]
    return found
