"""A language model beside a search: it proposes before the first trial, and again at a few nodes on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qimeng_tvm.errors import GenerateError, LLMError
from qimeng_tvm.generate.history import Spills, history_of
from qimeng_tvm.generate.proposal import Tuned, propose
from qimeng_tvm.llm.messages import Client
from qimeng_tvm.schedule.analytic import analytic_proposal
from qimeng_tvm.schedule.contract import Values
from qimeng_tvm.schedule.proposal import Proposal


@dataclass
class Adviser:
    """Asks a model about one operator.

    Attributes
    ----------
    tuned : Tuned
        Operator, rule and machine.
    client : Client
        Who answers.
    rounds : int
        Answers in a row to one question, at most.
    history : bool
        Whether what was measured is told (for ablations).
    path : Path, optional
        Transcript of the first question; those of later ones lie beside it, numbered.
    say : callable
        Told of every round.
    spills : callable, optional
        Looks at a point's machine code; see :func:`~qimeng_tvm.generate.history.history_of`.
    """

    tuned: Tuned
    client: Client
    rounds: int = 3
    history: bool = True
    path: Path | None = None
    say: Callable[[str], None] = lambda _: None
    spills: Spills | None = None
    _asked: int = 0
    _dropped: list[str] = field(default_factory=list)

    def first(self) -> Proposal:
        """Return the model's proposal, or, when its answers are all refused, the analytic one.

        Raises
        ------
        LLMError
            If the client gives no answer.
        """
        try:
            return self._propose(self.tuned)
        except GenerateError as error:
            self.say(f"{error}: the analytic proposal takes its place")
            return analytic_proposal(self.tuned.task)

    def expand(self, path: Values, trials: Sequence[tuple[Values, float | None]]) -> Proposal | None:
        """Return what the model proposes below a node; None when it has no usable answer: the search goes on.

        Parameters
        ----------
        path : mapping
            Decisions that are made already.
        trials : sequence of (decisions, seconds or None)
            What was measured so far.
        """
        if not self.history and not path:
            return None  # the first question again
        history = history_of(self.tuned.task, trials, self._dropped, self.spills) if self.history else None
        self._dropped.clear()
        try:
            return self._propose(replace(self.tuned, path=dict(path), history=history, number=self._asked))
        except (GenerateError, LLMError) as error:
            self.say(f"{error}: the search goes on as it was")
            return None

    def _propose(self, tuned: Tuned) -> Proposal:
        number, self._asked = self._asked, self._asked + 1
        path = self.path.with_suffix(f".{number}{self.path.suffix}") if self.path is not None and number else self.path
        proposal = propose(tuned, self.client, rounds=self.rounds, path=path, say=self.say).value
        self._dropped += proposal.dropped
        for line in proposal.dropped:
            self.say(f"dropped: {line}")
        return proposal
