"""Names of what the search benchmark compares: a strategy, less some of its parts, with or without a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qimeng_tvm.errors import UsageError

#: TVM's own space and search.
STOCK = "metaschedule"
LLM = "llm"
#: What the language model is told of the search so far; a part of its prompts, not of the strategy.
HISTORY = "history"
#: Parts that a strategy can do without; one that is not here has none.
PARTS: Mapping[str, tuple[str, ...]] = {
    "mcts": ("proposal", "backup", "model"),
    "evolve": ("model",),
    "evolutionary": ("model",),
}
#: Strategies that a language model can advise.
ADVISED = ("mcts",)


@dataclass(frozen=True)
class Entrant:
    """A strategy as it is benchmarked.

    Attributes
    ----------
    strategy : str
        Of :data:`~qimeng_tvm.search.choose.STRATEGIES`, or ``metaschedule``.
    without : tuple of str
        Parts of the strategy that are off.
    llm : bool
        Whether a language model proposes and expands.
    history : bool
        Whether its prompts tell what was measured so far.
    """

    strategy: str
    without: tuple[str, ...] = ()
    llm: bool = False
    history: bool = True


def parse_entrant(name: str, strategies: Sequence[str]) -> Entrant:
    """Return what a name such as ``mcts-proposal-model`` or ``mcts+llm-history`` stands for.

    Parameters
    ----------
    name : str
        ``STRATEGY[+llm][-PART]...``.
    strategies : sequence of str
        Those that there are; ``metaschedule`` is known besides.

    Raises
    ------
    UsageError
        If there is no such strategy or part, or the model cannot advise that strategy: a name that would stand for
        the same as a shorter one is refused.
    """
    head, *lacking = name.split("-")
    strategy, *added = head.split("+")
    known = [*strategies, STOCK]
    if strategy not in known:
        raise UsageError(f"no strategy is called {strategy!r}; there are {', '.join(known)}")
    if added not in ([], [LLM]):
        raise UsageError(f"{name!r}: only +{LLM} can be added to a strategy")
    if added and strategy not in ADVISED:
        raise UsageError(f"{name!r}: a language model can advise {', '.join(ADVISED)}, not {strategy}")
    parts = (*PARTS.get(strategy, ()), *((HISTORY,) if added else ()))
    for part in lacking:
        if part not in parts or lacking.count(part) > 1:
            has = f"it has {', '.join(parts)}" if parts else "it has none that can be left out"
            raise UsageError(f"{name!r}: {head} cannot do without {part!r}; {has}, each once")
    without = tuple(part for part in lacking if part != HISTORY)
    return Entrant(strategy, without, bool(added), HISTORY not in lacking)


def whole_of(name: str) -> str:
    """Return the name of the same strategy with all of its parts."""
    return name.split("-", maxsplit=1)[0]
