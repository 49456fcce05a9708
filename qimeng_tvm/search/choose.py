"""The strategies by name: what chooses the decisions that are measured next."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qimeng_tvm.errors import UsageError
from qimeng_tvm.schedule.analytic import analytic_proposal
from qimeng_tvm.schedule.apply import Task
from qimeng_tvm.schedule.proposal import Proposal
from qimeng_tvm.search.proposer import Chooser, DefaultOnly, Proposer, RandomProposer
from qimeng_tvm.search.tree import TreeSearch

#: What is used when nobody says.
DEFAULT = "evolve"

Make = Callable[[Task, int, "Proposal | None"], Chooser]


def _tree(task: Task, seed: int, proposal: Proposal | None) -> Chooser:
    return TreeSearch(task.space, seed, prior=proposal or analytic_proposal(task))


#: Every strategy; all of them measure the analytic decisions first.
STRATEGIES: Mapping[str, Make] = {
    "mcts": _tree,
    "evolve": lambda task, seed, _: Proposer(task.space, seed),
    "random": lambda task, seed, _: RandomProposer(task.space, seed),
    "default": lambda task, seed, _: DefaultOnly(task.space, seed),
}


def strategy_of(name: str) -> Make:
    """Return what makes a strategy's chooser.

    Raises
    ------
    UsageError
        If there is no such strategy.
    """
    if name not in STRATEGIES:
        raise UsageError(f"no strategy is called {name!r}; there are {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def chooser_for(strategy: str, task: Task, seed: int, proposal: Proposal | None = None) -> Chooser:
    """Return what chooses a task's decisions; what is recorded of the task is for it to learn.

    Parameters
    ----------
    strategy : str
        ``mcts``: tree search from a proposal's weights; ``evolve``: neighbours of the best, ranked by the cost model;
        ``random``; ``default``: the analytic decisions alone.
    task : Task
        What is tuned.
    seed : int
        Of the search.
    proposal : Proposal, optional
        Weights for ``mcts``; the analytic ones by default.

    Raises
    ------
    UsageError
        If there is no such strategy.
    """
    return strategy_of(strategy)(task, seed, proposal)
