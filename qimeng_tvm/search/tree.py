"""Tree search over a rule's decisions: partial decisions are nodes, measured times are what comes back. No TVM here.

The decisions are taken in the rule's order; a node is the values of the first of them. For every batch a pool of new
points is drawn: by a proposal's weights, and around the fastest points measured; the cost model says of each how fast
it may be. From the root, PUCT (Rosin, "Multi-armed bandits with episode context", 2011; Silver et al., 2017) takes the
child of the highest

    Q + exploration * P * sqrt(N) / (1 + n)

where P is the proposal's weight for the child's value, n and N count what was measured, or is being measured, below the
child and its parent. Q is the predicted speed of the best new point below the child, as a share of the best measured;
where something was measured below it, half of Q is that, backed up along the path. At a node that was never visited the
point of the highest prediction is taken. What is on its way to be measured counts as a visit that brought nothing, so
that a batch spreads (virtual loss).

Whoever knows more may be asked at a few nodes, after a batch was measured: what was measured so far goes in, weights of
the decisions below the node come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from qimeng_tvm.schedule.contract import Decision, SearchSpace, Value, Values
from qimeng_tvm.schedule.proposal import Proposal
from qimeng_tvm.search.proposer import Chooser, Key, Point, Score, neighbour

#: (values, seconds or None) of every trial, in order.
Measured = Sequence[tuple[Values, float | None]]
#: (values of the first decisions, what was measured) -> a proposal for the others, or None.
Expand = Callable[[Values, Measured], "Proposal | None"]
Weights = tuple[Mapping[Value, float], ...]
#: A new point, and how fast it may be as a share of the best.
Scored = tuple[Point, float]

#: Weight that is shared out evenly among all candidates, proposed or not: a proposal may be wrong.
TRUST = 0.9
EXPLORATION = 0.1
#: Of a node's worth, how much the best measured below it counts; the rest is the mean. And of Q, what was measured.
BEST_SHARE, MEASURED_SHARE = 0.7, 0.5
#: New points that are looked at for a batch; and the fastest measured ones whose neighbours are among them.
POOL, PARENTS = 192, 4
#: Nodes at which somebody is asked, at most; trials between two of them; visits that a node below the root needs.
EXPANSIONS, EXPAND_AFTER, _VISITED = 3, 6, 3
#: Draws for each point of the pool, before it stays smaller.
_DRAWS = 6
#: Spaces up to this size are walked through when draws find nothing new.
_SMALL = 20_000


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

    def breaks(self, values: Values) -> bool:
        """Tell whether values do not keep to a constraint."""
        return self.proposal is not None and self.proposal.broken(values) is not None


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
        Whether measured times are used (for ablations: without, predictions, weights and visits decide).
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
            The cost model: predicted speed, as a share of the best measured.
        """
        self._ask()
        pool = self._scored(self._pool(count), score)
        chosen: list[Point] = []
        while pool and len(chosen) < count:
            point = self._pick(pool, score is not None)
            self._claim(point)
            chosen.append(point)
            pool = [scored for scored in pool if scored[0] is not point]
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

    def _scored(self, points: Sequence[Point], score: Score | None) -> list[Scored]:
        if not points:
            return []
        worth = score(points) if score is not None else [0.0] * len(points)
        return [(point, float(w)) for point, w in zip(points, worth, strict=True)]

    def _pick(self, pool: Sequence[Scored], predicted: bool) -> Point:
        """Walk down by PUCT to a node that was never visited, or to the last decision, and take a point there."""
        node, path, advice = self.root, dict[str, Value](), self._advice
        for depth, decision in enumerate(self.space.decisions):
            advice = node.advice or advice
            below: dict[Value, list[Scored]] = {}
            for scored in pool:
                below.setdefault(scored[0][decision.name], []).append(scored)
            weights = self._constrained(path, decision, depth, advice)
            value = max(below, key=lambda v: self._bound(node, v, below[v], weights[v], predicted))
            pool, path[decision.name] = below[value], value
            node = node.children.setdefault(value, Node())
            if not node.visits and not node.pending:
                break
        return max(pool, key=lambda s: s[1])[0] if predicted else self._rng.choice(pool)[0]

    def _bound(self, node: Node, value: Value, below: Sequence[Scored], weight: float, predicted: bool) -> float:
        """Return how good a child may be."""
        child = node.children.get(value)
        count = child.visits + child.pending if child is not None else 0
        best = self._best if self.backup else 0.0
        # Of a child without visits its parent's worth is the best guess, where there is no prediction.
        measured = child.worth(best) if child is not None and count else node.worth(best)
        known = max(worth for _, worth in below) if predicted else measured
        if predicted and count and best:
            known += MEASURED_SHARE * (measured - known)
        explored = math.sqrt(node.visits + node.pending + 1) / (1 + count)
        return known + self.exploration * weight * explored

    def _constrained(self, path: Point, decision: Decision, depth: int, advice: Advice) -> Mapping[Value, float]:
        """Return the weights of a decision below a path: little is left of those that break a constraint."""
        weights = advice.weights[depth]
        if advice.proposal is None or not advice.proposal.constraints:
            return weights
        return {v: w * (1 - TRUST) if advice.breaks({**path, decision.name: v}) else w for v, w in weights.items()}

    def _pool(self, count: int) -> list[Point]:
        """Return new legal points that are worth a look."""
        size = max(POOL, 16 * count)
        if self.space.size() <= size:
            return self._all_new()
        found: dict[Key, Point] = {}
        for point in islice(self._drafts(), size * _DRAWS):
            key = self.key(point)
            if key not in found and self._new(point):
                found[key] = point
                if len(found) == size:
                    break
        if len(found) < count and self.space.size() <= _SMALL:
            return self._all_new()
        return list(found.values())

    def _all_new(self) -> list[Point]:
        return [point for point in self.space.legal_points() if self._new(point)]

    def _drafts(self) -> Iterator[Point]:
        """Yield points without end: the likeliest, draws by the weights, neighbours of the fastest, draws by advice."""
        advised = list(self._advised_nodes())
        timed = sorted(((s, i) for i, (_, s) in enumerate(self._measured) if s is not None))
        parents = [self._measured[i][0] for _, i in timed[:PARENTS]]
        yield {d.name: max(w, key=lambda v: w[v]) for d, w in self._with_weights(self._advice)}
        while True:
            yield self._heeding(self._advice, {})
            if parents:
                yield neighbour(self.space, self._rng, self._rng.choice(parents))
            for path, advice in advised:
                yield self._heeding(advice, path)

    def _with_weights(self, advice: Advice) -> list[tuple[Decision, Mapping[Value, float]]]:
        return list(zip(self.space.decisions, advice.weights, strict=True))

    def _heeding(self, advice: Advice, path: Values) -> Point:
        """Draw a point below a path by weights; one that breaks a constraint is drawn anew, nine times in ten."""
        point = self._draw(advice, path)
        while advice.breaks(point) and self._rng.random() < TRUST:
            point = self._draw(advice, path)
        return point

    def _draw(self, advice: Advice, path: Values) -> Point:
        """Draw the decisions that are not on a path by their weights; every other point keeps half of the defaults."""
        keeps = self._rng.random() < 0.5
        point = dict(path)
        for decision, weights in self._with_weights(advice):
            if decision.name in point:
                continue
            if keeps and self._rng.random() < 0.5:
                point[decision.name] = decision.default
            else:
                point[decision.name] = self._rng.choices(list(weights), list(weights.values()))[0]
        return point

    def _advised_nodes(self) -> Iterator[tuple[Point, Advice]]:
        """Yield the nodes with advice of their own, and the path to each."""
        work: list[tuple[Node, Point]] = [(self.root, {})]
        while work:
            node, path = work.pop()
            if node.advice is not None:
                yield path, node.advice
            if len(path) < len(self._names):
                name = self._names[len(path)]
                work += [(child, {**path, name: value}) for value, child in node.children.items() if child.visits]

    def _new(self, point: Point) -> bool:
        return self.key(point) not in self._seen and self.space.illegal(point) is None


def weights_of(decision: Decision, prior: Proposal | None) -> dict[Value, float]:
    """Return the weight of each candidate: a proposal's, and a little for all."""
    even = 1.0 / len(decision.candidates)
    choice = prior.choices.get(decision.name) if prior is not None else None
    if choice is None:
        return dict.fromkeys(decision.candidates, even)
    given = dict(zip(choice.candidates, choice.prior, strict=True))
    return {v: TRUST * given.get(v, 0.0) + (1 - TRUST) * even for v in decision.candidates}
