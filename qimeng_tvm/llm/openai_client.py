"""The client for any server that speaks chat completions: timeouts, retries and messages of our own."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from qimeng_tvm.errors import LLMError
from qimeng_tvm.llm.messages import Reply, Request, Usage, in_words
from qimeng_tvm.llm.settings import Endpoint

if TYPE_CHECKING:
    import openai

#: Answers of a server that may be another the next time.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_WHAT = {
    400: "the server refuses the request",
    401: "the key is not accepted: set OPENAI_API_KEY",
    403: "the key may not use this model",
    404: "no such model or address: check the model's name and OPENAI_BASE_URL",
    413: "the request is too long for this model",
    429: "too many requests, or the account is used up",
}


class _Refused(Exception):
    """One attempt failed; ``again`` tells whether another may not."""

    def __init__(self, message: str, again: bool, wait: float | None = None) -> None:
        super().__init__(message)
        self.again, self.wait = again, wait


@dataclass
class OpenAIClient:
    """Answers of a server.

    Attributes
    ----------
    endpoint : Endpoint
        Server, model, key and patience.
    sleep, jitter : callable
        Time passing and chance, for tests.
    """

    endpoint: Endpoint
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    jitter: Callable[[], float] = field(default=random.random, repr=False)
    _connection: openai.OpenAI | None = field(default=None, init=False, repr=False)
    _schemas: bool = field(default=True, init=False, repr=False)

    @property
    def name(self) -> str:
        """For people."""
        return f"openai ({self.endpoint.model} at {self.endpoint.host})"

    def ask(self, request: Request) -> Reply:
        """Return the server's answer.

        Raises
        ------
        LLMError
            After the last attempt; the message says what the server said and what to do.
        """
        start = time.monotonic()
        attempts = self.endpoint.retries + 1
        for attempt in range(1, attempts + 1):
            try:
                return self._once(request, start)
            except _Refused as refused:
                if not refused.again or attempt == attempts:
                    tries = f" ({attempt} attempts)" if attempt > 1 else ""
                    raise LLMError(f"{self.name}: {refused}{tries}") from None
                self.sleep(self._wait(refused, attempt))
        raise AssertionError("unreachable")

    def _wait(self, refused: _Refused, attempt: int) -> float:
        """Return the seconds before the next attempt: what the server asks for, else ever longer."""
        limit = self.endpoint.max_wait
        if refused.wait is None:
            return float(min(limit, 2.0 ** (attempt - 1)) * (0.5 + self.jitter() / 2))
        if refused.wait > limit:
            raise LLMError(
                f"{self.name}: {refused}; it asks to wait {refused.wait:.0f} s, longer than the {limit:.0f} s allowed "
                "(max_wait): try again then"
            )
        return refused.wait

    def _once(self, request: Request, start: float) -> Reply:
        import openai  # noqa: PLC0415 (only when used)

        try:
            answer = self._call(self._arguments(request))
        except (openai.APITimeoutError, TimeoutError):
            raise _Refused(f"no answer within {self.endpoint.timeout:g} s", again=True) from None
        except openai.APIConnectionError as error:
            why = error.__cause__ or error
            raise _Refused(f"the connection failed ({type(why).__name__}: {_line(why)})", again=True) from None
        except openai.APIStatusError as error:
            if error.status_code == 400 and request.schema is not None and self._schemas:
                self._schemas = False  # older servers do not know the parameter: ask in words instead
                return self._once(request, start)
            raise _status(error) from None
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            raise _Refused(f"the answer cannot be read ({type(error).__name__}: {_line(error)})", again=True) from None
        return self._read(answer, start)

    def _call(self, arguments: dict[str, Any]) -> Any:
        """Make one request. The library limits each read; a server that sends a byte now and then is limited here."""
        connection = self._connected()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(lambda: connection.chat.completions.create(**arguments))
            try:
                return future.result(self.endpoint.timeout)
            except FutureTimeoutError:
                self._connection = None
                connection.close()  # ends the thread that waits
                raise TimeoutError from None

    def _arguments(self, request: Request) -> dict[str, Any]:
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        arguments: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": messages,
            "max_tokens": request.max_tokens,
        }
        if self.endpoint.temperature is not None:
            arguments["temperature"] = self.endpoint.temperature
        if request.schema is not None:
            if self._schemas:
                named = {"name": "answer", "schema": dict(request.schema)}
                arguments["response_format"] = {"type": "json_schema", "json_schema": named}
            else:
                messages[-1]["content"] += f"\n\n{in_words(request.schema)}"
        return arguments

    def _read(self, answer: Any, start: float) -> Reply:
        choices = getattr(answer, "choices", None)
        if not choices:  # a page of HTML comes back as a string
            begin = _line(answer)[:80]
            raise _Refused(
                f"the answer is not a chat completion ({begin!r}): is OPENAI_BASE_URL the address of the API, often "
                "ending in /v1?",
                again=False,
            )
        first = choices[0]
        text = first.message.content if first.message is not None else None
        if not text:
            reason = first.finish_reason
            raise _Refused(
                f"the answer is empty (finish reason {reason})", again=reason not in ("length", "content_filter")
            )
        used = getattr(answer, "usage", None)
        usage = Usage(
            1,
            int(getattr(used, "prompt_tokens", 0) or 0),
            int(getattr(used, "completion_tokens", 0) or 0),
            time.monotonic() - start,
        )
        return Reply(
            text, str(getattr(answer, "model", "") or self.endpoint.model), usage, first.finish_reason == "length"
        )

    def _connected(self) -> openai.OpenAI:
        if self._connection is None:
            import openai  # noqa: PLC0415

            self._connection = openai.OpenAI(
                api_key=self.endpoint.api_key or "none",
                base_url=self.endpoint.base_url,
                timeout=self.endpoint.timeout,
                max_retries=0,  # ours know what to say
            )
        return self._connection


def _status(error: openai.APIStatusError) -> _Refused:
    code = error.status_code
    what = _WHAT.get(code, "the server failed" if code >= 500 else "the server refuses the request")
    wait = _wished(error.response.headers.get("retry-after", ""))
    return _Refused(f"{code}, {what}: {_line(error)[:200]}", code in _PASSING, wait)


def _wished(text: str) -> float | None:
    """Return the seconds that a Retry-After header asks to wait: a number, or until a date; None: nothing sensible."""
    try:
        wait = float(text)
    except ValueError:
        try:
            wait = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None  # absent, or nonsense: our own pace then
    return max(0.0, wait) if math.isfinite(wait) else None


def _line(error: object) -> str:
    return " ".join(str(error).split())
