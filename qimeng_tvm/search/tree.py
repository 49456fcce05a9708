"""Tree search over a rule's decisions: partial decisions are nodes, measured times are what comes back. No TVM here.

The decisions are taken in the rule's order; a node is the values of the first of them. From the root, PUCT (Rosin,
"Multi-armed bandits with episode context", 2011; Silver et al., 2017) takes the child of the highest

    Q + exploration * P * sqrt(N) / (1 + n)

where P is a proposal's weight for the child's value, n and N count what was measured, or is being measured, below the
child and its parent, and Q is the speed of what was measured below it, as a share of the best of all. Where nothing is
known the rest of the decisions is drawn by the weights, several times over, and the cost model takes its pick. What is
on its way to be measured counts as a visit that brought nothing, so that a batch spreads (virtual loss).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from qimeng_tvm.schedule.contract import Decision, SearchSpace, Value, Values
from qimeng_tvm.schedule.proposal import Proposal
from qimeng_tvm.search.proposer import Chooser, Key, Point, Score

#: Weight that is shared out evenly among all candidates, proposed or not: a proposal may be wrong.
TRUST = 0.9
EXPLORATION = 0.6
#: Of a node's worth, how much the best below it counts; the rest is the mean.
BEST_SHARE = 0.7
#: Ways to complete a path that the cost model chooses from.
COMPLETIONS = 48
#: Paths from the root that may lead to nothing new before the search gives up.
_TRIES = 60
#: Draws of the rest of a path, for one that goes together.
_DRAWS = 4
#: Ends of a path up to which all of them are looked at, when draws find nothing new.
_SMALL = 4096


@dataclass
class Node:
    """Values of the first decisions.

    Attributes
    ----------
    children : dict
        By the value of the next decision.
    visits, pending : int
        Measured below it, failures included; on their way.
    rates, best : float
        Sum and maximum of 1 / seconds below it.
    closed : bool
        Nothing new is below it.
    """

    children: dict[Value, Node] = field(default_factory=dict)
    visits: int = 0
    pending: int = 0
    rates: float = 0.0
    best: float = 0.0
    closed: bool = False

    def worth(self, best: float) -> float:
        """Return the speed below it as a share of the best of all; pending visits bring nothing."""
        count = self.visits + self.pending
        if not count or not best:
            return 0.0
        mean = self.rates / count / best
        return BEST_SHARE * self.best / best + (1 - BEST_SHARE) * mean


class TreeSearch(Chooser):
    """Choose decisions by tree search.

    Parameters
    ----------
    space, seed, seen
        As of :class:`~qimeng_tvm.search.proposer.Chooser`.
    prior : Proposal, optional
        Weights of the candidates; without one all are as good.
    exploration : float
        How much weights and rarely visited children count against what was measured.
    backup : bool
        Whether measured times are used (for ablations: without, weights and visits alone decide).
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        seen: Iterable[Values] = (),
        prior: Proposal | None = None,
        *,
        exploration: float = EXPLORATION,
        backup: bool = True,
    ) -> None:
        super().__init__(space, seed, seen)
        self.exploration = exploration
        self.backup = backup
        self.root = Node()
        self._weights = tuple(weights_of(d, prior) for d in space.decisions)
        self._best = 0.0

    def propose(self, count: int, parents: Sequence[Values] = (), score: Score | None = None) -> list[Point]:
        """Return up to ``count`` new points; fewer only when nothing new is found.

        Parameters
        ----------
        count : int
            How many; each one counts as a visit that brought nothing until :meth:`learn` is told of it.
        parents : sequence of mappings
            Not used: what was measured is in the tree.
        score : callable, optional
            The cost model: higher is better.
        """
        chosen: list[Point] = []
        while len(chosen) < count:
            point = self._next(score)
            if point is None:
                break
            self._claim(point)
            chosen.append(point)
        return chosen

    def learn(self, values: Values, seconds: float | None) -> None:
        """Take a measurement, or a failure (None), into account, along the whole path."""
        rate = 1.0 / seconds if seconds else 0.0
        super().learn(values, seconds)
        self._best = max(self._best, rate)
        for node in self._path(values):
            node.visits += 1
            node.pending = max(0, node.pending - 1)
            node.rates += rate
            node.best = max(node.best, rate)

    def drop(self, values: Values) -> None:
        """Take back that a point is on its way: it was not measured."""
        for node in self._path(values):
            node.pending = max(0, node.pending - 1)

    def _claim(self, point: Point) -> bool:
        new = super()._claim(point)
        for node in self._path(point) if new else ():
            node.pending += 1
        return new

    def _path(self, values: Values) -> list[Node]:
        """Return the nodes of a point from the root on, making those that are missing."""
        nodes = [self.root]
        for name in self._names:
            nodes.append(nodes[-1].children.setdefault(values.get(name, ""), Node()))
        return nodes

    def _next(self, score: Score | None) -> Point | None:
        for _ in range(_TRIES):
            if self.root.closed:
                return None
            nodes, prefix = self._descend()
            found = self._completed(prefix)
            if found:
                if score is None:
                    return found[0]
                worth = score(found)
                return found[max(range(len(found)), key=lambda i: worth[i])]
            self._close(nodes, prefix)
        return None

    def _descend(self) -> tuple[list[Node], list[Value]]:
        """Walk down by PUCT, to a node that was never visited or to the last decision."""
        nodes, prefix = [self.root], list[Value]()
        for depth, decision in enumerate(self.space.decisions):
            value = self._best_child(nodes[-1], decision, self._weights[depth])
            if value is None:
                nodes[-1].closed = True
                break
            prefix.append(value)
            child = nodes[-1].children.setdefault(value, Node())
            nodes.append(child)
            if not child.visits and not child.pending:
                break
        return nodes, prefix

    def _best_child(self, node: Node, decision: Decision, weights: Mapping[Value, float]) -> Value | None:
        best = self._best if self.backup else 0.0
        total = math.sqrt(node.visits + node.pending + 1)
        chosen, highest = None, -math.inf
        for value in decision.candidates:
            child = node.children.get(value)
            if child is not None and child.closed:
                continue
            count = 0 if child is None else child.visits + child.pending
            # Of a child without visits its parent's worth is the best guess.
            known = child.worth(best) if child is not None and count else node.worth(best)
            bound = known + self.exploration * weights[value] * total / (1 + count)
            if bound > highest:
                chosen, highest = value, bound
        return chosen

    def _completed(self, prefix: Sequence[Value]) -> list[Point]:
        """Return new legal points that begin with some values: the likeliest defaults, and draws by the weights."""
        found: dict[Key, Point] = {}
        rest = self.space.decisions[len(prefix) :]
        start = dict(zip(self._names, prefix, strict=False))
        for number in range(1 if not rest else COMPLETIONS * _DRAWS):
            point: Point = dict(start)
            for depth, decision in enumerate(rest, start=len(prefix)):
                # The first draft keeps the analytic choice of the rest, every other one half of it.
                keeps = number == 0 or (number % 2 and self._rng.random() < 0.5)
                weights = self._weights[depth]
                point[decision.name] = (
                    decision.default if keeps else self._rng.choices(list(weights), list(weights.values()))[0]
                )
            key = self.key(point)
            if key not in found and self._new(point):
                found[key] = point
                if len(found) == COMPLETIONS:
                    break
        if not found and math.prod(len(d.candidates) for d in rest) <= _SMALL:
            walk = product(*(d.candidates for d in rest))
            points = ({**start, **dict(zip(self._names[len(prefix) :], values, strict=True))} for values in walk)
            return [point for point in points if self._new(point)][:COMPLETIONS]
        return list(found.values())

    def _new(self, point: Point) -> bool:
        return self.key(point) not in self._seen and self.space.illegal(point) is None

    def _close(self, nodes: Sequence[Node], prefix: Sequence[Value]) -> None:
        """Note that a path leads to nothing new, and its parents when all of their children do."""
        nodes[-1].closed = True
        for depth in range(len(nodes) - 2, -1, -1):
            known = nodes[depth].children
            candidates = self.space.decisions[depth].candidates
            if any(v not in known or not known[v].closed for v in candidates):
                return
            nodes[depth].closed = True


def weights_of(decision: Decision, prior: Proposal | None) -> dict[Value, float]:
    """Return the weight of each candidate: a proposal's, and a little for all."""
    even = 1.0 / len(decision.candidates)
    choice = prior.choices.get(decision.name) if prior is not None else None
    if choice is None:
        return dict.fromkeys(decision.candidates, even)
    given = dict(zip(choice.candidates, choice.prior, strict=True))
    return {v: TRUST * given.get(v, 0.0) + (1 - TRUST) * even for v in decision.candidates}
