"""The strategies by name: what chooses the decisions that are measured next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from qimeng_tvm.errors import UsageError
from qimeng_tvm.schedule.analytic import analytic_proposal
from qimeng_tvm.schedule.apply import Task
from qimeng_tvm.schedule.contract import Values
from qimeng_tvm.schedule.proposal import Proposal
from qimeng_tvm.search.proposer import Chooser, DefaultOnly, Proposer, RandomProposer
from qimeng_tvm.search.tree import TreeSearch

#: What is used when nobody says.
DEFAULT = "evolve"

Make = Callable[[Task, int, Iterable[Values], "Proposal | None"], Chooser]


def _tree(task: Task, seed: int, seen: Iterable[Values], proposal: Proposal | None) -> Chooser:
    return TreeSearch(task.space, seed, seen, proposal or analytic_proposal(task))


#: Every strategy; all of them measure the analytic decisions first.
STRATEGIES: Mapping[str, Make] = {
    "mcts": _tree,
    "evolve": lambda task, seed, seen, _: Proposer(task.space, seed, seen),
    "random": lambda task, seed, seen, _: RandomProposer(task.space, seed, seen),
    "default": lambda task, seed, seen, _: DefaultOnly(task.space, seed, seen),
}


def chooser_for(
    strategy: str, task: Task, seed: int, seen: Iterable[Values] = (), proposal: Proposal | None = None
) -> Chooser:
    """Return what chooses a task's decisions.

    Parameters
    ----------
    strategy : str
        ``mcts``: tree search from a proposal's weights; ``evolve``: neighbours of the best, ranked by the cost model;
        ``random``; ``default``: the analytic decisions alone.
    task : Task
        What is tuned.
    seed : int
        Of the search.
    seen : iterable of mappings
        Points that need no trying.
    proposal : Proposal, optional
        Weights for ``mcts``; the analytic ones by default.

    Raises
    ------
    UsageError
        If there is no such strategy.
    """
    make = STRATEGIES.get(strategy)
    if make is None:
        raise UsageError(f"no strategy is called {strategy!r}; there are {', '.join(STRATEGIES)}")
    return make(task, seed, seen, proposal)
