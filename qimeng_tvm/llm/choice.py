"""``--llm``: which client answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qimeng_tvm.errors import UsageError
from qimeng_tvm.llm.messages import Client

FORMS = "openai, openai:MODEL, exchange:FOLDER, replay or replay:FOLDER"


def shipped_transcripts() -> Path:
    """Return the folder of the transcripts behind the shipped families and rules.

    Raises
    ------
    UsageError
        If this installation has none.
    """
    beside = Path(__file__).resolve().parents[2] / "transcripts"
    if not beside.is_dir():
        raise UsageError("this installation has no transcripts: give their folder, --llm replay:FOLDER")
    return beside


def choose_client(text: str, say: Callable[[str], None] = lambda _: None) -> Client:
    """Return the client that an option names.

    Parameters
    ----------
    text : str
        One of `FORMS`.
    say : callable
        Told what a person must do, such as where a request waits for its answer.

    Raises
    ------
    UsageError
        If it names none.
    LLMError
        If what it names cannot be used: no key, no transcripts.
    """
    kind, _, rest = text.partition(":")
    if kind == "openai":
        from qimeng_tvm.llm.openai_client import OpenAIClient  # noqa: PLC0415
        from qimeng_tvm.llm.settings import endpoint  # noqa: PLC0415

        return OpenAIClient(endpoint(rest or None))
    if kind == "exchange" and rest:
        from qimeng_tvm.llm.exchange import ExchangeClient  # noqa: PLC0415

        return ExchangeClient(Path(rest), say=say)
    if kind == "replay":
        from qimeng_tvm.llm.transcript import ReplayClient  # noqa: PLC0415

        return ReplayClient(Path(rest) if rest else shipped_transcripts())
    if kind == "exchange":
        raise UsageError("exchange needs a folder for the requests and replies: --llm exchange:FOLDER")
    raise UsageError(f"no client is called {text!r}; there are {FORMS}")
