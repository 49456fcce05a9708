"""Tree search over a rule's decisions: partial decisions are nodes, measured times are what comes back. No TVM here.

The decisions are taken in the rule's order; a node is the values of the first of them. From the root, PUCT (Rosin,
"Multi-armed bandits with episode context", 2011; Silver et al., 2017) takes the child of the highest

    Q + exploration * P * sqrt(N) / (1 + n)

where P is a proposal's weight for the child's value, n and N count what was measured, or is being measured, below the
child and its parent, and Q is the speed of what was measured below it, as a share of the best of all. Where nothing is
known the rest of the decisions is drawn by the weights, several times over, and the cost model takes its pick. What is
on its way to be measured counts as a visit that brought nothing, so that a batch spreads (virtual loss).

Whoever knows more may be asked at a few nodes, after a batch was measured: what was measured so far goes in, weights of
the decisions below the node come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from qimeng_tvm.schedule.contract import Decision, SearchSpace, Value, Values
from qimeng_tvm.schedule.proposal import Proposal
from qimeng_tvm.search.proposer import Chooser, Key, Point, Score

#: (values, seconds or None) of every trial, in order.
Measured = Sequence[tuple[Values, float | None]]
#: (values of the first decisions, what was measured) -> a proposal for the others, or None.
Expand = Callable[[Values, Measured], "Proposal | None"]
Weights = tuple[Mapping[Value, float], ...]

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
#: Nodes at which somebody is asked, at most; trials between two of them; visits that a node below the root needs.
EXPANSIONS, EXPAND_AFTER, _VISITED = 3, 6, 3
#: Ends of a path up to which all of them are looked at, when draws find nothing new.
_SMALL = 4096


@dataclass(frozen=True)
class Advice:
    """What is preferred below a node.

    Attributes
    ----------
    weights : tuple of mappings
        Of the candidates, decision by decision.
    proposal : Proposal, optional
        Where they come from; its constraints hold as its weights do.
    """

    weights: Weights
    proposal: Proposal | None = None


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
    asked : bool
        Somebody was asked what is worth trying below it.
    advice : Advice, optional
        What came of that.
    """

    children: dict[Value, Node] = field(default_factory=dict)
    visits: int = 0
    pending: int = 0
    rates: float = 0.0
    best: float = 0.0
    closed: bool = False
    asked: bool = False
    advice: Advice | None = None

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
    expand : callable, optional
        Asked at a few nodes; see :data:`Expand`.
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
        expand: Expand | None = None,
        exploration: float = EXPLORATION,
        backup: bool = True,
    ) -> None:
        super().__init__(space, seed, seen)
        self.exploration = exploration
        self.backup = backup
        self.root = Node()
        self._expand = expand
        self._expansions = 0
        self._advice = self._advised(prior)
        self._measured: list[tuple[Values, float | None]] = []
        self._asked_after = 0
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
        self._ask()
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
        self._measured.append((values, seconds))
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
            nodes, prefix, advice = self._descend()
            found = self._completed(prefix, advice)
            if found:
                if score is None:
                    return found[0] if len(found) == 1 else self._rng.choice(found)
                worth = score(found)
                return found[max(range(len(found)), key=lambda i: worth[i])]
            self._close(nodes, prefix)
        return None

    def _advised(self, proposal: Proposal | None) -> Advice:
        return Advice(tuple(weights_of(d, proposal) for d in self.space.decisions), proposal)

    def _ask(self) -> None:
        """Ask what is worth trying below the node that the search has come to, if it is time for that."""
        if self._expand is None or self._expansions >= EXPANSIONS:
            return
        if len(self._measured) - self._asked_after < EXPAND_AFTER:
            return
        found = self._focus()
        if found is None:
            return
        node, path = found
        node.asked = True
        self._expansions += 1
        self._asked_after = len(self._measured)
        proposal = self._expand(path, tuple(self._measured))
        if proposal is not None:
            node.advice = self._advised(proposal)

    def _focus(self) -> tuple[Node, dict[str, Value]] | None:
        """Return the root, or else the first node down the most visited path at which nobody was asked yet."""
        node, path = self.root, dict[str, Value]()
        for depth, decision in enumerate(self.space.decisions):
            free = [d for d in self.space.decisions[depth:] if len(d.candidates) > 1]
            if len(free) < 2:
                return None
            if not node.asked and len(decision.candidates) > 1:
                return node, path
            value, child = max(node.children.items(), key=lambda c: (c[1].visits, c[1].best), default=(None, None))
            if value is None or child is None or child.visits < _VISITED:
                return None
            node, path = child, {**path, decision.name: value}
        return None

    def _descend(self) -> tuple[list[Node], list[Value], Advice]:
        """Walk down by PUCT, to a node that was never visited or to the last decision."""
        nodes, prefix = [self.root], list[Value]()
        advice = self._advice
        for depth, decision in enumerate(self.space.decisions):
            advice = nodes[-1].advice or advice
            value = self._best_child(nodes[-1], decision, advice.weights[depth])
            if value is None:
                nodes[-1].closed = True
                break
            prefix.append(value)
            child = nodes[-1].children.setdefault(value, Node())
            nodes.append(child)
            if not child.visits and not child.pending:
                break
        return nodes, prefix, advice

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

    def _completed(self, prefix: Sequence[Value], advice: Advice) -> list[Point]:
        """Return new legal points that begin with some values: defaults, the likeliest, and draws by the weights."""
        found: dict[Key, Point] = {}
        rest = self.space.decisions[len(prefix) :]
        start = dict(zip(self._names, prefix, strict=False))
        for number in range(1 if not rest else COMPLETIONS * _DRAWS):
            point: Point = dict(start)
            for depth, decision in enumerate(rest, start=len(prefix)):
                point[decision.name] = self._draw(number, decision, advice.weights[depth])
            key = self.key(point)
            if key not in found and self._new(point) and self._heeds(point, advice):
                found[key] = point
                if len(found) == COMPLETIONS:
                    break
        if not found and math.prod(len(d.candidates) for d in rest) <= _SMALL:
            walk = product(*(d.candidates for d in rest))
            points = ({**start, **dict(zip(self._names[len(prefix) :], values, strict=True))} for values in walk)
            return [point for point in points if self._new(point)][:COMPLETIONS]
        return list(found.values())

    def _draw(self, number: int, decision: Decision, weights: Mapping[Value, float]) -> Value:
        """Draw a value for a draft: the first keeps the analytic choice, the second takes what is likeliest."""
        if number == 0:
            return decision.default
        if number == 1:
            return max(weights, key=lambda v: weights[v])
        # Every other draft keeps half of the analytic choice.
        if number % 2 and self._rng.random() < 0.5:
            return decision.default
        return self._rng.choices(list(weights), list(weights.values()))[0]

    def _heeds(self, point: Point, advice: Advice) -> bool:
        """Tell whether a point keeps to the proposal's constraints; one in ten need not."""
        if advice.proposal is None or advice.proposal.broken(point) is None:
            return True
        return self._rng.random() > TRUST

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
