"""``--llm``: which client answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qimeng_tvm.errors import UsageError
from qimeng_tvm.llm.messages import Client

FORMS = "openai, openai:MODEL, openai:MODEL@URL, exchange:FOLDER, replay or replay:FOLDER"


def shipped_transcripts() -> Path:
    """Return the folder of the transcripts behind the shipped families and rules.

    Raises
    ------
    UsageError
        If this installation has none.
    """
    package = Path(__file__).resolve().parents[1]
    # Installed below the package; at the top of a checkout.
    for folder in (package / "transcripts", package.parent / "transcripts"):
        if folder.is_dir():
            return folder
    raise UsageError("this installation has no transcripts: give their folder, --llm replay:FOLDER")


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

        # A model's name may hold an @, an address begins with its scheme.
        model, at, url = rest.partition("@http")
        return OpenAIClient(endpoint(model or None, f"http{url}" if at else None))
    if kind == "exchange" and rest:
        from qimeng_tvm.llm.exchange import ExchangeClient  # noqa: PLC0415

        return ExchangeClient(Path(rest), say=say)
    if kind == "replay":
        from qimeng_tvm.llm.transcript import ReplayClient  # noqa: PLC0415

        return ReplayClient(Path(rest) if rest else shipped_transcripts())
    if kind == "exchange":
        raise UsageError("exchange needs a folder for the requests and replies: --llm exchange:FOLDER")
    raise UsageError(f"no client is called {text!r}; there are {FORMS}")
