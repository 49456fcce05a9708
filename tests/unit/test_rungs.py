"""When a candidate's timing stops: by the repeats so far and the best candidate."""

from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qimeng_tvm.search.rungs import RUNGS, more_repeats

SECONDS = st.floats(1e-6, 1.0)


def steps(repeats, planned, best, first=None):
    """Time a candidate whose repeats take these seconds in turn; return how many it makes at a time."""
    made, times, source = [], [], cycle(repeats)
    while more := more_repeats(times, planned, best, repeats[0] if first is None else first):
        made.append(more)
        times += [next(source) for _ in range(more)]
    return made


def test_factors_shrink_and_are_above_one():
    factors = [r.factor for r in RUNGS]
    assert factors == sorted(factors, reverse=True) and min(factors) > 1
    assert [r.share for r in RUNGS] == sorted(r.share for r in RUNGS) and RUNGS[-1].share < 1


@pytest.mark.parametrize(
    ("seconds", "made"),
    [
        (0.9, [5, 5, 10]),
        (1.05, [5, 5, 10]),
        (1.2, [5, 5]),
        (1.6, [5]),
        (3.0, [1]),
    ],
)
def test_the_slower_the_sooner(seconds, made):
    assert steps([seconds], 20, 1.0) == made


def test_an_unlucky_first_call_or_repeat_costs_nothing():
    assert sum(steps([1.0], 20, 1.0, first=9.0)) == 20
    assert sum(steps([9.0, 9.0, 1.0], 20, 1.0, first=1.0)) == 20


def test_without_a_best_all_repeats_come_at_once():
    assert steps([3.0], 20, 0.0) == [20]


def test_few_repeats_are_not_cut_small():
    assert steps([1.0], 2, 1.0) == [2]
    assert steps([1.0], 4, 1.0) == [2, 2]
    assert steps([1.2], 4, 1.0) == [2]


@given(st.lists(SECONDS, min_size=1, max_size=20), st.integers(2, 20), SECONDS, SECONDS)
def test_who_wins_has_had_all_repeats(repeats, planned, best, first):
    made = steps(repeats, planned, best, first)
    source = cycle(repeats)
    fastest = min(next(source) for _ in range(sum(made)))
    assert 1 <= sum(made) <= planned
    assert sum(made) == planned or fastest > best
