"""Which decisions to try next: random legal points and mutations of the best, ranked by a score. No TVM here."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from qimeng_tvm.schedule.contract import Decision, SearchSpace, Value, Values

Point = dict[str, Value]
Key = tuple[Value, ...]
#: points -> one number each; the highest is tried first.
Score = Callable[[Sequence[Point]], Sequence[float] | npt.NDArray[np.float64]]

#: Spaces up to this size are walked through when sampling finds nothing new.
_SMALL = 20_000
_TRIES = 400


class Chooser(ABC):
    """What chooses the decisions that are measured next, none of them twice.

    Parameters
    ----------
    space : SearchSpace
        The rule's decisions.
    seed : int
        Same seed and same feedback, same points.
    seen : iterable of mappings
        Points that need no trying.
    """

    def __init__(self, space: SearchSpace, seed: int, seen: Iterable[Values] = ()) -> None:
        self.space = space
        self._rng = random.Random(seed)
        self._names = tuple(d.name for d in space.decisions)
        self._seen = {self.key(values) for values in seen}

    def key(self, values: Values) -> Key:
        """Values in the rule's order."""
        return tuple(values.get(name, "") for name in self._names)

    def default(self) -> Point | None:
        """Return the analytic decisions, unless they were seen; they count as seen afterwards."""
        point = self.space.defaults()
        return point if self._claim(point) else None

    @abstractmethod
    def propose(self, count: int, parents: Sequence[Values] = (), score: Score | None = None) -> list[Point]:
        """Return up to ``count`` new points; fewer only when nothing new is found."""

    def learn(self, values: Values, seconds: float | None) -> None:
        """Take a measurement into account; None: it failed."""
        self._seen.add(self.key(values))

    def drop(self, values: Values) -> None:
        """Take back that a point is on its way: it was not measured, and is not tried again."""
        self._seen.add(self.key(values))

    def _claim(self, point: Point) -> bool:
        key = self.key(point)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


class Proposer(Chooser):
    """Propose points of a space: neighbours of the best ones and random ones, ranked by a score.

    Parameters
    ----------
    space, seed, seen
        As of :class:`Chooser`.
    epsilon : float
        Share of proposals taken at random instead of by score.
    """

    def __init__(self, space: SearchSpace, seed: int, seen: Iterable[Values] = (), epsilon: float = 0.1) -> None:
        super().__init__(space, seed, seen)
        self.epsilon = epsilon
        self._walk: Iterator[Point] | None = None

    def propose(self, count: int, parents: Sequence[Values] = (), score: Score | None = None) -> list[Point]:
        """Return up to ``count`` new points, best first; fewer only when the space is exhausted.

        Parameters
        ----------
        count : int
            How many.
        parents : sequence of mappings
            The best points so far, best first; half of the pool are their neighbours.
        score : callable, optional
            Ranks the pool; without it the pool's own order holds.
        """
        pool = self._pool(max(64, 16 * count), parents)
        if score is not None and pool:
            worth = score(pool)
            order = sorted(range(len(pool)), key=lambda i: -worth[i])
            pool = [pool[i] for i in order]
        chosen: list[Point] = []
        while pool and len(chosen) < count:
            at = self._rng.randrange(len(pool)) if self._rng.random() < self.epsilon else 0
            point = pool.pop(at)
            self._claim(point)
            chosen.append(point)
        return chosen

    def _pool(self, size: int, parents: Sequence[Values]) -> list[Point]:
        found: dict[Key, Point] = {}
        starts = [dict(p) for p in parents[:4]] or [self.space.defaults()]
        tries = 0
        # Patient only while nothing at all was found: then the space is nearly used up, or mostly illegal.
        while len(found) < size and tries < (size + _TRIES if found else 10 * _TRIES):
            tries += 1
            # Neighbours and strangers by turns: the first of them are what a batch gets when nothing is known.
            point = (
                neighbour(self.space, self._rng, self._rng.choice(starts)) if len(found) % 2 == 0 else self._random()
            )
            key = self.key(point)
            if key not in self._seen and key not in found and self.space.illegal(point) is None:
                found[key] = point
        if not found and self.space.size() <= _SMALL:
            self._walk = self._walk or self.space.legal_points()
            for point in self._walk:
                if self.key(point) not in self._seen:
                    return [point]
        return list(found.values())

    def _random(self) -> Point:
        return {d.name: self._rng.choice(d.candidates) for d in self.space.decisions}


def neighbour(space: SearchSpace, rng: random.Random, start: Values) -> Point:
    """Change one to three decisions of a point, numbers mostly to the next one; the result need not be legal."""
    point = dict(start)
    free = [d for d in space.decisions if len(d.candidates) > 1]
    for decision in rng.sample(free, min(len(free), rng.choice((1, 1, 2, 3)))):
        point[decision.name] = _step(rng, decision, point[decision.name])
    return point


def _step(rng: random.Random, decision: Decision, value: Value) -> Value:
    candidates = decision.candidates
    if not isinstance(value, int) or rng.random() < 0.3 or value not in candidates:
        return rng.choice([c for c in candidates if c != value])
    at = candidates.index(value)
    near = [i for i in (at - 1, at + 1) if 0 <= i < len(candidates)]
    return candidates[rng.choice(near)]


class RandomProposer(Proposer):
    """Propose legal points at random, whatever is known."""

    def propose(self, count: int, parents: Sequence[Values] = (), score: Score | None = None) -> list[Point]:
        """Return up to ``count`` new points; ``parents`` and ``score`` are not used."""
        chosen: list[Point] = []
        for _ in range(_TRIES * count):
            point = self._random()
            if self.space.illegal(point) is None and self._claim(point):
                chosen.append(point)
                if len(chosen) == count:
                    return chosen
        return [*chosen, *super().propose(count - len(chosen))]


class DefaultOnly(Chooser):
    """Propose the analytic decisions and nothing else."""

    def propose(self, count: int, parents: Sequence[Values] = (), score: Score | None = None) -> list[Point]:
        """Return nothing."""
        return []
