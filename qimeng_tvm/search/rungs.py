"""When to stop timing a candidate: successive halving on its repeats. No TVM here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """A share of the repeats, and what ends a candidate there.

    Attributes
    ----------
    share : float
        Of the repeats that are planned.
    factor : float
        One whose fastest repeat took longer than the best candidate by more than this goes no further. Above 1, so
        that whatever becomes the best has had all its repeats.
    """

    share: float
    factor: float


#: The first is for the call that found out how long a call takes. The more repeats, the surer their minimum is: what
#: else the machine does adds time to some of them, seldom to all.
RUNGS = (Rung(0.0, 2.5), Rung(0.25, 1.3), Rung(0.5, 1.1))
#: A rung of fewer repeats is left out: every further one costs a call to warm up.
_FEWEST = 2


def _count(rung: Rung, planned: int) -> int:
    return math.ceil(rung.share * planned)


def more_repeats(times: Sequence[float], planned: int, best: float, first: float) -> int:
    """Return how many repeats to make next; 0: the candidate has had all, or is clearly slower than the best.

    Parameters
    ----------
    times : sequence of float
        Seconds of a call in each repeat so far.
    planned : int
        Repeats of a candidate that goes all the way.
    best : float
        Seconds of the best candidate so far; 0 when there is none.
    first : float
        Seconds of one call before all repeats.
    """
    done = len(times)
    if not best:
        return planned - done
    if not done and first > RUNGS[0].factor * best:
        return 1  # that call may have been unlucky: one repeat tells
    passed = [r for r in RUNGS if done and _count(r, planned) <= done]
    if done >= planned or (passed and min(times) > passed[-1].factor * best):
        return 0
    goals = [_count(r, planned) for r in RUNGS]
    goal = next((g for g in goals if g > done and g >= _FEWEST), planned)
    return goal - done
