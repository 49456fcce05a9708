"""Ask a model for JSON: validate, say what is wrong, ask again, up to a number of rounds."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from qimeng_tvm.errors import GenerateError, QimengError
from qimeng_tvm.generate.answer import MAX_REPLY, code_of
from qimeng_tvm.generate.verdict import ACCEPTED
from qimeng_tvm.llm.messages import Client, Message, Reply, Request, digest
from qimeng_tvm.llm.prompts.render import Prompt
from qimeng_tvm.llm.transcript import Recorded, Round, Transcript, read_transcript, said

Form = TypeVar("Form", bound=BaseModel)
Value = TypeVar("Value")
#: What an answer goes through, in order.
STAGES = ("json", "form", "check")
#: Findings told at once: more of them would only be read halfway.
_TOLD = 12
_JSON = ("JSON", "", "json")


class Refused(Exception):
    """An answer of the right form is wrong.

    Parameters
    ----------
    findings : sequence of str
        One line each, for the model.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        super().__init__("; ".join(findings))
        self.findings = tuple(findings)


@dataclass(frozen=True)
class Question(Generic[Form, Value]):
    """Something that is asked for in JSON.

    Attributes
    ----------
    label : str
        ``hardware describe``: for people, and the task of the transcript.
    prompt : Prompt
        What the model is told.
    schema : mapping
        JSON schema of the answer, for servers that can hold a model to it.
    form : type
        The same as a pydantic model: what the answer is held to here.
    check : callable
        Turns an answer of that form into a value, or raises :class:`Refused`. Any other error of ours ends the
        conversation: nothing that the model says can mend it.
    told : str
        What a recorded answer is known by; the prompt's text by default. For a prompt that tells measured times, which
        is never the same twice.
    """

    label: str
    prompt: Prompt
    schema: Mapping[str, Any]
    form: type[Form]
    check: Callable[[Form], Value]
    told: str = ""

    def request(self, messages: Sequence[Message] = (), replies: Sequence[str] = ()) -> Request:
        """Return the next request of the conversation, the first one by default."""
        return Request(
            purpose=f"{self.label}, round {len(replies) + 1}",
            messages=tuple(messages) or (Message("user", self.prompt.text),),
            key=digest(self.label, self.told or self.prompt.text, [digest(r) for r in replies]),
            schema=self.schema,
        )


@dataclass(frozen=True)
class Asked(Generic[Value]):
    """What came of a question.

    Attributes
    ----------
    value : object
        Of the accepted answer.
    transcript : Transcript
        Every round.
    """

    value: Value
    transcript: Transcript


def ask(
    question: Question[Form, Value],
    client: Client,
    *,
    rounds: int = 3,
    path: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Asked[Value]:
    """Ask until an answer is accepted.

    Parameters
    ----------
    question : Question
        What.
    client : Client
        Who answers.
    rounds : int
        Answers in a row, at most.
    path : Path, optional
        Of the transcript, written after every round. Answers that it holds already are not asked for again.
    say : callable
        Told of every round.

    Raises
    ------
    GenerateError
        If no answer was accepted; the transcript is kept.
    LLMError
        If the client gives none.
    """
    known = Recorded([(path, read_transcript(path))] if path is not None and path.exists() else [])
    request = question.request()
    done: list[Round] = []
    shown = 0
    for _ in range(rounds):
        reply = known.find(request) or client.ask(request)
        judged = _judge(question, reply)
        done.append(_round(request, shown, reply, judged.stage, judged.findings))
        transcript = _transcript(question, reply.model, done)
        if path is not None:
            transcript.write(path)
        say(f"{request.purpose}: {judged.stage}. {'; '.join(judged.findings)[:200]}")
        if judged.fatal is not None:
            raise judged.fatal
        if judged.value is not None:
            return Asked(judged.value, transcript)
        shown = len(request.messages) + 1
        told = (Message("assistant", reply.text), Message("user", _feedback(judged.findings)))
        request = question.request((*request.messages, *told), [r.reply for r in done])
    last = done[-1]
    raise GenerateError(
        f"no answer to {question.label} was right in {rounds} {'round' if rounds == 1 else 'rounds'}; the last stopped "
        f"at {last.verdict}: {' '.join(last.findings.split())[:300]} (give more --rounds, or ask another model)"
    )


def read_json(reply: Reply) -> Any:
    """Return the JSON of a reply: the whole of it, or its one code block.

    Raises
    ------
    Refused
        If it holds none.
    """
    if reply.truncated:
        raise Refused(["the answer was cut off at the longest length allowed: give a shorter one"])
    if len(reply.text) > MAX_REPLY:
        raise Refused([f"the answer has {len(reply.text)} characters; {MAX_REPLY} are the most"])
    text = reply.text.strip()
    if "```" in text or "~~~" in text:
        answer = code_of(reply.text, languages=_JSON)
        if answer.problem:
            raise Refused([answer.problem])
        text = answer.source
    elif not text.startswith("{"):
        raise Refused(["the answer is not JSON: answer with one JSON object and nothing else"])
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_finite)
    except json.JSONDecodeError as error:
        raise Refused([f"the answer is not JSON: {error.msg}, line {error.lineno} column {error.colno}"]) from error
    except (ValueError, RecursionError) as error:
        raise Refused([f"the answer is not JSON: {str(error)[:200]}"]) from error


@dataclass(frozen=True)
class _Judged(Generic[Value]):
    """What the checks said of an answer; ``fatal``: what ends the conversation."""

    stage: str
    findings: tuple[str, ...] = ()
    value: Value | None = None
    fatal: QimengError | None = None


def _judge(question: Question[Form, Value], reply: Reply) -> _Judged[Value]:
    stage = "json"
    try:
        data = read_json(reply)
        stage = "form"
        form = question.form.model_validate(data)
        stage = "check"
        return _Judged(ACCEPTED, value=question.check(form))
    except Refused as refused:
        return _Judged(stage, refused.findings)
    except ValidationError as error:
        return _Judged(stage, tuple(_place(e["loc"]) + e["msg"] for e in error.errors()))
    except QimengError as error:
        return _Judged(stage, (str(error),), fatal=error)


def _place(loc: tuple[int | str, ...]) -> str:
    return f"{'.'.join(map(str, loc))}: " if loc else ""


def _feedback(findings: Sequence[str]) -> str:
    lines = [f"- {line}" for line in findings[:_TOLD]]
    if len(findings) > _TOLD:
        lines.append(f"- and {len(findings) - _TOLD} more")
    return "That is refused:\n\n" + "\n".join(lines) + "\n\nAnswer with the whole JSON object again and nothing else."


def _round(request: Request, shown: int, reply: Reply, stage: str, findings: Sequence[str]) -> Round:
    return Round(
        purpose=request.purpose,
        key=request.key,
        digest=request.digest,
        asked=said(request.messages[shown:]),
        reply=reply.text,
        truncated=reply.truncated,
        verdict=stage,
        findings="\n".join(findings),
        prompt_tokens=reply.usage.prompt_tokens,
        completion_tokens=reply.usage.completion_tokens,
    )


def _transcript(question: Question[Form, Value], model: str, done: Sequence[Round]) -> Transcript:
    return Transcript(
        task=question.label,
        prompt=question.prompt.label,
        model=model,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        rounds=tuple(done),
        best=len(done) - 1 if done[-1].verdict == ACCEPTED else -1,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is given twice")
    return found


def _finite(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")
