"""A proposal: candidate values and a prior for the named decisions of a rule, whoever makes it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.schedule.contract import Decision, SearchSpace, Value, Values

#: Points that are looked at, the most probable first, for one that is legal.
LOOKED_AT = 2000


@dataclass(frozen=True)
class Weighted:
    """Candidates of one decision.

    Attributes
    ----------
    candidates : tuple of int or str
        Among the rule's.
    prior : tuple of float
        How probable each of them is the best; they add up to 1.
    why : str
        For people, one line.
    """

    candidates: tuple[Value, ...]
    prior: tuple[float, ...]
    why: str = ""


@dataclass(frozen=True)
class Constraint:
    """What goes together.

    Attributes
    ----------
    when : Mapping[str, value]
        If a point has all of these values,
    then : Mapping[str, tuple of values]
        each of these decisions should have one of the values named.
    why : str
        For people, one line.
    """

    when: Mapping[str, Value]
    then: Mapping[str, tuple[Value, ...]]
    why: str = ""

    def broken(self, values: Values) -> bool:
        """Tell whether a point does not keep to it; decisions that a point does not name break nothing."""
        if any(values.get(name) != value for name, value in self.when.items()):
            return False
        return any(name in values and values[name] not in allowed for name, allowed in self.then.items())

    def __str__(self) -> str:
        when = ", ".join(f"{n}={v}" for n, v in self.when.items())
        then = ", ".join(f"{n} in {list(v)}" for n, v in self.then.items())
        return f"{f'with {when}: ' if when else ''}{then}"


@dataclass(frozen=True)
class Proposal:
    """What is worth trying.

    Attributes
    ----------
    choices : Mapping[str, Weighted]
        By decision; of a decision that is not named, every candidate is as good.
    why : str
        For people.
    constraints : tuple of Constraint
        Between decisions.
    dropped : tuple of str
        What was proposed and is not in it, because the rule does not allow it; one line each.
    """

    choices: Mapping[str, Weighted]
    why: str = ""
    constraints: tuple[Constraint, ...] = ()
    dropped: tuple[str, ...] = ()

    def broken(self, values: Values) -> Constraint | None:
        """Return the first constraint that a point does not keep to; None when it keeps to all."""
        return next((c for c in self.constraints if c.broken(values)), None)

    def apply(self, space: SearchSpace) -> SearchSpace:
        """Return the space with the proposed candidates alone, in the rule's order.

        The defaults stay if they are among the candidates, or else are the most probable legal point.

        Raises
        ------
        ScheduleError
            If a decision or candidate is not the rule's, or no legal point was found.
        """
        narrow = self._narrowed(space)
        defaults: Values = space.defaults()
        if any(defaults[d.name] not in d.candidates for d in narrow.decisions):
            defaults = self.likeliest(narrow)
        decisions = tuple(replace(d, default=defaults[d.name]) for d in narrow.decisions)
        return replace(narrow, decisions=decisions)

    def likeliest(self, space: SearchSpace, fixed: Values | None = None) -> dict[str, Value]:
        """Return the most probable legal point of a space.

        Parameters
        ----------
        space : SearchSpace
            Already restricted.
        fixed : mapping, optional
            Values that it must have.

        Raises
        ------
        ScheduleError
            If none of the most probable points is legal; it says why the first is not.
        """
        why = ""
        for looked_at, point in enumerate(self._ordered(space, fixed or {}), start=1):
            reason = space.illegal(point)
            if reason is None:
                return point
            why = why or reason
            if looked_at == LOOKED_AT:
                break
        raise ScheduleError(f"no legal point among the {looked_at} most probable: {why}")

    def _narrowed(self, space: SearchSpace) -> SearchSpace:
        known = {d.name: d for d in space.decisions}
        for name, choice in self.choices.items():
            if name not in known:
                raise ScheduleError(f"unknown decision {name!r}; the rule has {', '.join(known)}")
            wrong = [v for v in choice.candidates if v not in known[name].candidates]
            if wrong or not choice.candidates:
                raise ScheduleError(f"decision {name}: {wrong} not among {list(known[name].candidates)}")
        return replace(space, decisions=tuple(self._narrow(d) for d in space.decisions))

    def _narrow(self, decision: Decision) -> Decision:
        choice = self.choices.get(decision.name)
        if choice is None:
            return decision
        kept = tuple(v for v in decision.candidates if v in choice.candidates)
        best = choice.candidates[max(range(len(choice.prior)), key=choice.prior.__getitem__)]
        return replace(decision, candidates=kept, default=decision.default if decision.default in kept else best)

    def _ranked(self, decision: Decision, fixed: Values) -> list[tuple[float, Value]]:
        """Return (cost, value) of each candidate, the most probable first; the default before its equals."""
        if decision.name in fixed:
            return [(0.0, fixed[decision.name])]
        choice = self.choices.get(decision.name)
        weights = {v: 1 / len(decision.candidates) for v in decision.candidates}
        if choice is not None:
            weights = dict(zip(choice.candidates, choice.prior, strict=True))
        ordered = sorted(weights, key=lambda v: (-weights[v], v != decision.default))
        return [(-math.log(max(weights[v], 1e-300)), v) for v in ordered]

    def _ordered(self, space: SearchSpace, fixed: Values) -> Iterator[dict[str, Value]]:
        """Yield points, the most probable first."""
        names = [d.name for d in space.decisions]
        ranked = [self._ranked(d, fixed) for d in space.decisions]
        first = (0,) * len(ranked)
        heap = [(sum(r[0][0] for r in ranked), 0, first)]
        seen = {first}
        while heap:
            cost, _, at = heapq.heappop(heap)
            yield {name: r[i][1] for name, r, i in zip(names, ranked, at, strict=True)}
            for place, (r, i) in enumerate(zip(ranked, at, strict=True)):
                further = (*at[:place], i + 1, *at[place + 1 :])
                if i + 1 < len(r) and further not in seen:
                    seen.add(further)
                    # Among equals, the fewest steps away from what is preferred.
                    heapq.heappush(heap, (cost + r[i + 1][0] - r[i][0], sum(further), further))
