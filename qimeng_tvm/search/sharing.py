"""How tasks share a budget of trials: every task first gets one, the others go where they promise to save most time.

What a trial promises is, as with the gradient of TVM's and Ansor's schedulers, what the last ones gained and what there
is still to gain. The latter is the time above what the machine's peak allows, taken to shrink like one over the trials:
where nothing moves, trials go by the square root of what the tasks weigh. No task takes so much that the others are
left with their defaults alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Trials that count as just now.
_WINDOW = 8
#: Of a task's time, what a trial may save at least: peaks and times are both measured.
_LEAST = 0.01
#: FLOP/s of tasks without a time, as long as no task has one.
_SLOW = 1e9


@dataclass(eq=False)
class Share:
    """One task among those that share a budget.

    Attributes
    ----------
    weight : float
        How often it runs.
    flops : float
        Of one run.
    peak : float
        FLOP/s that the machine can do at best; 0 when unknown.
    recorded, measured : int
        Trials of earlier runs, and of this one.
    seconds : float
        Its best time; 0 while there is none.
    exhausted : bool
        There is nothing left to try.
    """

    weight: float
    flops: float
    peak: float = 0.0
    recorded: int = 0
    measured: int = 0
    seconds: float = 0.0
    exhausted: bool = False
    _history: list[tuple[int, float]] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """Trials of all runs."""
        return self.recorded + self.measured

    def update(self, measured: int, seconds: float) -> None:
        """Note how many trials this run has measured, and the best time."""
        self.measured, self.seconds = measured, seconds
        if seconds and (not self._history or self._history[-1][0] < self.trials):
            self._history.append((self.trials, seconds))

    def gain(self, speed: float) -> float:
        """Return the seconds that a trial promises to save of all runs together.

        Parameters
        ----------
        speed : float
            FLOP/s, for the time of a task that has none.
        """
        now = self.seconds or self.flops / speed
        least = self.flops / self.peak if self.peak else 0.0
        possible = max(now - least, _LEAST * now)
        return self.weight * (self._just_gained() + possible / max(self.trials, 1) ** 2)

    def _just_gained(self) -> float:
        if len(self._history) < 2:
            return 0.0
        trials, seconds = self._history[-1]
        before = next((h for h in reversed(self._history[:-1]) if h[0] <= trials - _WINDOW), self._history[0])
        return (before[1] - seconds) / (trials - before[0])


class Sharing:
    """A budget and the tasks that share it.

    A task takes its even part and half of what is left to the others at most, those trials that earlier runs recorded
    included: what was tuned before does not use up the trials of the rest. A task that has nothing left to try leaves
    its part to the others.

    Parameters
    ----------
    shares : sequence of Share
        The tasks.
    trials : int
        Over all tasks, those of earlier runs included.
    batch : int
        Trials of one task in a row, at most.

    Attributes
    ----------
    least : int
        Trials of one task in a row, where there is room for them: as many as are measured side by side.
    """

    def __init__(self, shares: Sequence[Share], trials: int, batch: int = 8) -> None:
        self.shares = tuple(shares)
        self.trials = trials
        self.batch = batch
        self.least = 1

    @property
    def counted(self) -> int:
        """Trials that count: of those recorded earlier no more than a task could have had."""
        cap, closed = self._cap(), _cap(self.trials, len(self.shares))
        return sum(s.measured + min(s.recorded, closed if s.exhausted else cap) for s in self.shares)

    @property
    def total(self) -> int:
        """Trials in all: those asked for, but one at least for every task."""
        return max(self.trials, self.counted + len(self._untried()))

    @property
    def room(self) -> int:
        """Trials that are left."""
        return self.total - self.counted

    def next(self) -> tuple[int, int] | None:
        """Return the task that is tuned next and how many trials it gets; None when there is nothing left to do."""
        untried = self._untried()
        if untried and len(self.shares) > 1:
            # The heaviest first: a time limit may come before the others.
            first = max(untried, key=lambda s: s.weight * s.flops)
            return self.shares.index(first), 1
        cap = self._cap()
        open_ = [s for s in self._live() if s.trials < cap]
        if not open_ or self.room <= 0:
            return None
        speed = min((s.flops / s.seconds for s in self.shares if s.seconds), default=_SLOW)
        best = max(open_, key=lambda s: s.gain(speed))
        # Small enough that every other task may come first in between, twice.
        count = self.batch if len(open_) == 1 else max(self.least, min(self.batch, self.room // (2 * len(open_))))
        return self.shares.index(best), min(count, cap - best.trials, self.room)

    def _untried(self) -> list[Share]:
        return [s for s in self._live() if not s.trials]

    def _live(self) -> list[Share]:
        return [s for s in self.shares if not s.exhausted]

    def _cap(self) -> int:
        """Trials of one task, at most, as long as others have something to try."""
        first = _cap(self.trials, len(self.shares))
        live = self._live()
        left = self.trials - sum(min(s.trials, first) for s in self.shares if s.exhausted)
        return max(first, _cap(left, len(live))) if live else first


def _cap(trials: int, tasks: int) -> int:
    even = trials / tasks
    return math.ceil(even + (trials - even) / 2)
