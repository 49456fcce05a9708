"""What is said to a language model, and what comes back: plain data, one form for every client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes
    ----------
    role : str
        ``system``, ``user`` or ``assistant``.
    content : str
        Markdown.
    """

    role: Role
    content: str


@dataclass(frozen=True)
class Request:
    """A conversation that wants one more answer.

    Attributes
    ----------
    purpose : str
        One line for people: ``intrinsic x86.avx2_f32, round 2``.
    messages : tuple of Message
        The conversation so far; the last is the user's.
    key : str
        Where the conversation stands, whatever machine it runs on: prompt and version, task, and the answers so far.
        Measured figures in the messages differ from one machine to the next; the key does not.
    schema : mapping, optional
        JSON schema of the answer; none: text.
    max_tokens : int
        Longest answer.
    sample : int
        Which of several independent answers to the same question this asks for.
    """

    purpose: str
    messages: tuple[Message, ...]
    key: str = ""
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 16_000
    sample: int = 0

    @property
    def digest(self) -> str:
        """Identity of what is asked: messages and schema, to the letter, and which answer to them."""
        return digest([asdict(m) for m in self.messages], self.schema, self.sample)


@dataclass(frozen=True)
class Usage:
    """What answers cost.

    Attributes
    ----------
    calls : int
        Requests answered.
    prompt_tokens, completion_tokens : int
        As the server counted them; 0 where it does not tell.
    seconds : float
        Time waited.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens both ways."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes
    ----------
    text : str
        To the letter.
    model : str
        Who answered.
    usage : Usage
        What it cost.
    truncated : bool
        It stopped at the longest answer allowed.
    """

    text: str
    model: str
    usage: Usage = field(default_factory=Usage)
    truncated: bool = False


class Client(Protocol):
    """Whoever can answer a request."""

    @property
    def name(self) -> str:
        """For people: ``openai (model at host)``, ``exchange folder``."""

    def ask(self, request: Request) -> Reply:
        """Return the answer.

        Raises
        ------
        LLMError
            If none is to be had: what was wrong, and what to do.
        """


def in_words(schema: Mapping[str, Any]) -> str:
    """Return the wish for JSON as a paragraph, for whoever is not told of a schema in another way."""
    return f"Answer with JSON of this schema alone:\n\n```json\n{json.dumps(schema, indent=1)}\n```\n"


def readable(request: Request) -> str:
    """Return a conversation as one Markdown text, to be pasted or read."""
    if len(request.messages) == 1 and request.schema is None:
        return request.messages[0].content.rstrip("\n") + "\n"
    parts = [f"<!-- {m.role} -->\n\n{m.content.strip()}\n" for m in request.messages]
    if request.schema is not None:
        parts.append(f"<!-- form of the answer -->\n\n{in_words(request.schema)}")
    return "\n".join(parts)


def digest(*parts: Any) -> str:
    """Return a hash of plain data, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
