"""The strategies by name: what chooses the decisions that are measured next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qimeng_tvm.errors import UsageError
from qimeng_tvm.schedule.analytic import analytic_proposal
from qimeng_tvm.schedule.apply import Task
from qimeng_tvm.schedule.proposal import Proposal
from qimeng_tvm.search.evolution import Evolution
from qimeng_tvm.search.proposer import Chooser, DefaultOnly, Proposer, RandomProposer
from qimeng_tvm.search.tree import Expand, TreeSearch

#: What is used when nobody says.
DEFAULT = "evolve"
#: What a language model can advise.
ADVISED = "mcts"

#: What a search can do without, for ablations.
PARTS = ("proposal", "backup", "model")


@dataclass(frozen=True)
class Guide:
    """What ``mcts`` starts from, who is asked on the way, and what it does without.

    Attributes
    ----------
    proposal : Proposal, optional
        Weights of the candidates; the analytic ones by default.
    expand : callable, optional
        Asked at a few nodes for weights of the decisions below; see :data:`~qimeng_tvm.search.tree.Expand`.
    without : tuple of str
        Of :data:`PARTS`: the proposal's weights, measured times in the tree, the cost model.
    """

    proposal: Proposal | None = None
    expand: Expand | None = None
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [part for part in self.without if part not in PARTS]
        if unknown:
            raise UsageError(f"a search has no part called {unknown[0]!r} to do without; there are {', '.join(PARTS)}")


Make = Callable[[Task, int, Guide], Chooser]


def _tree(task: Task, seed: int, guide: Guide) -> Chooser:
    prior = None if "proposal" in guide.without else guide.proposal or analytic_proposal(task)
    return TreeSearch(task.space, seed, prior=prior, expand=guide.expand, backup="backup" not in guide.without)


#: Every strategy; all of them measure the analytic decisions first.
STRATEGIES: Mapping[str, Make] = {
    "mcts": _tree,
    "evolve": lambda task, seed, _: Proposer(task.space, seed),
    "evolutionary": lambda task, seed, _: Evolution(task, seed),
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


def chooser_for(strategy: str, task: Task, seed: int, guide: Guide | None = None) -> Chooser:
    """Return what chooses a task's decisions; what is recorded of the task is for it to learn.

    Parameters
    ----------
    strategy : str
        ``mcts``: tree search from a proposal's weights; ``evolve``: neighbours of the best, ranked by the cost model;
        ``evolutionary``: TVM's evolutionary search; ``random``; ``default``: the analytic decisions alone.
    task : Task
        What is tuned.
    seed : int
        Of the search.
    guide : Guide, optional
        For ``mcts``.

    Raises
    ------
    UsageError
        If there is no such strategy.
    """
    return strategy_of(strategy)(task, seed, guide or Guide())
