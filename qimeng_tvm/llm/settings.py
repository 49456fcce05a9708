"""Where the model is: options, then environment, then the configuration file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qimeng_tvm.errors import LLMError, UsageError
from qimeng_tvm.files import TomlError, config_path, parse_toml
from qimeng_tvm.llm.budget import Budget


class _Entry(BaseModel):
    """The ``[llm]`` table of the configuration file."""

    model_config = ConfigDict(extra="forbid")

    base_url: str | None = None
    model: str | None = None
    api_key: str | None = None
    timeout: float = Field(default=600.0, gt=0)
    retries: int = Field(default=4, ge=0)
    max_wait: float = Field(default=60.0, ge=0)
    temperature: float | None = None
    calls: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    money: float | None = Field(default=None, ge=0)
    prompt_price: float = Field(default=0.0, ge=0)
    completion_price: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks the chat-completions protocol.

    Attributes
    ----------
    model : str
        As the server calls it.
    base_url : str, optional
        The server; the protocol's inventor by default.
    api_key : str
        Never shown, logged or written; many local servers take any.
    timeout : float
        Seconds for one attempt, from the first byte sent to the last received.
    retries : int
        Further attempts after a failure that may pass.
    max_wait : float
        Longest wait between attempts, seconds; a server that asks for more is an error.
    temperature : float, optional
        The server's own by default.
    """

    model: str
    base_url: str | None = None
    api_key: str = field(default="", repr=False)
    timeout: float = 600.0
    retries: int = 4
    max_wait: float = 60.0
    temperature: float | None = None

    @property
    def host(self) -> str:
        """The server, for people; without a password that the address may hold."""
        return (self.base_url or "api.openai.com").split("://")[-1].rsplit("@", 1)[-1]


def read_config(path: Path | None = None) -> _Entry:
    """Return the configuration file's ``[llm]`` table; defaults when there is no file.

    Raises
    ------
    UsageError
        If it is not TOML, or has an entry that is not known.
    """
    where = path or config_path()
    try:
        data: Mapping[str, Any] = parse_toml(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _Entry()
    except (OSError, UnicodeDecodeError, TomlError) as error:
        raise UsageError(f"cannot read the configuration {where}: {error}") from error
    try:
        return _Entry.model_validate(data.get("llm", {}))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{where}: llm.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def endpoint(
    model: str | None = None,
    base_url: str | None = None,
    *,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Endpoint:
    """Return the server to ask.

    Parameters
    ----------
    model, base_url : str, optional
        From the command line; they go before ``OPENAI_MODEL`` and ``OPENAI_BASE_URL``, and those before the file.
    config : Path, optional
        Configuration file; :func:`qimeng_tvm.files.config_path` by default.
    environment : mapping, optional
        The process's own by default.

    Raises
    ------
    LLMError
        If no model is named anywhere, or no key for a server that needs one.
    """
    env = os.environ if environment is None else environment
    file = read_config(config)
    name = model or env.get("OPENAI_MODEL") or file.model
    url = base_url or env.get("OPENAI_BASE_URL") or file.base_url
    key = env.get("OPENAI_API_KEY") or file.api_key or ""
    if not name:
        raise LLMError(
            f"no model is named: give --llm openai:MODEL, set OPENAI_MODEL, or write model under [llm] in "
            f"{config or config_path()}"
        )
    if not key and url is None:
        raise LLMError("no key: set OPENAI_API_KEY, or give the address of a server without one (OPENAI_BASE_URL)")
    made = Endpoint(name, url, key, file.timeout, file.retries, file.max_wait)
    return replace(made, temperature=file.temperature)


def budget_of(text: str | None = None, *, config: Path | None = None) -> Budget:
    """Return what may be spent.

    Parameters
    ----------
    text : str, optional
        ``calls=20,tokens=200000,money=1.5``, any of the three; the configuration file says the others, and the prices.
    config : Path, optional
        Configuration file; :func:`qimeng_tvm.files.config_path` by default.

    Raises
    ------
    UsageError
        If the text is something else.
    """
    file = read_config(config)
    limits: dict[str, Any] = {"calls": file.calls, "tokens": file.tokens, "money": file.money}
    for part in (text or "").split(",") if text else ():
        word, _, number = part.strip().partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if word not in limits or not 0 <= value < float("inf"):
            raise UsageError(f"{part.strip()!r} is no limit; say for instance calls=20,tokens=200000,money=1.5")
        limits[word] = value if word == "money" else int(value)
    return Budget(**limits, prompt_price=file.prompt_price, completion_price=file.completion_price)
