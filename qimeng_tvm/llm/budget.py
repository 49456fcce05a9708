"""A limit on calls, tokens and money, and the log of what was spent."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from qimeng_tvm.errors import BudgetError, LLMError
from qimeng_tvm.llm.messages import Client, Reply, Request, Usage


@dataclass(frozen=True)
class Budget:
    """What a run may spend; none: no limit.

    Attributes
    ----------
    calls, tokens : int, optional
        Requests, and tokens both ways.
    money : float, optional
        In the currency of the prices.
    prompt_price, completion_price : float
        Of a million tokens.
    """

    calls: int | None = None
    tokens: int | None = None
    money: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def cost(self, usage: Usage) -> float:
        """Return the price of what was used."""
        return (usage.prompt_tokens * self.prompt_price + usage.completion_tokens * self.completion_price) / 1e6

    def spent(self, usage: Usage) -> str:
        """Say which limit is reached; empty when none is."""
        for word, used, limit in (
            ("calls", usage.calls, self.calls),
            ("tokens", usage.tokens, self.tokens),
            ("money", self.cost(usage), self.money),
        ):
            if limit is not None and used >= limit:
                return f"{used:.6g} of {limit:.6g} {word}"
        return ""


@dataclass
class Metered:
    """A client with a budget and a log.

    Attributes
    ----------
    client : Client
        Who answers.
    budget : Budget
        Checked before each request: a run stops between two answers, never within one.
    log : Path, optional
        A line of JSON for each answer: purpose, model, tokens, seconds, cost. Never keys, never texts.
    """

    client: Client
    budget: Budget = field(default_factory=Budget)
    log: Path | None = None
    usage: Usage = field(default_factory=Usage, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def name(self) -> str:
        """For people."""
        return self.client.name

    def ask(self, request: Request) -> Reply:
        """Return the client's answer, unless the budget is spent."""
        spent = self.budget.spent(self.usage)
        if spent:
            raise BudgetError(f"the budget is spent ({spent}); what was got so far is kept: raise the limit to go on")
        reply = self.client.ask(request)
        with self._lock:  # several conversations may share the budget
            self.usage += reply.usage
            if self.log is not None:
                self._write(request, reply)
        return reply

    def _write(self, request: Request, reply: Reply) -> None:
        line = {
            "time": round(time.time(), 3),
            "purpose": request.purpose,
            "model": reply.model,
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
            "seconds": round(reply.usage.seconds, 3),
            "cost": self.budget.cost(reply.usage),
        }
        assert self.log is not None
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise LLMError(f"cannot write the log {self.log}: {error.strerror or error}") from error
