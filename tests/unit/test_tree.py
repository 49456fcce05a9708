"""Tree search over decisions: what it chooses, learns and ends with; nothing is measured here."""

import math
import random
from itertools import pairwise
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qimeng_tvm.errors import UsageError
from qimeng_tvm.schedule.contract import Decision, SearchSpace
from qimeng_tvm.schedule.proposal import Constraint, Proposal, Weighted
from qimeng_tvm.search.choose import STRATEGIES, Guide, chooser_for
from qimeng_tvm.search.proposer import DefaultOnly, Proposer, RandomProposer
from qimeng_tvm.search.tree import EXPAND_AFTER, EXPANSIONS, TreeSearch, weights_of

SPACE = SearchSpace(
    tuple(Decision(name, tuple(range(8)), 3) for name in "abcd"), lambda v: "odd" if (v["a"] + v["b"]) % 2 else None
)
SMALL = SearchSpace(
    (Decision("x", (1, 2, 3, 4), 2), Decision("y", ("p", "q"), "p")), lambda v: "no" if v["x"] == 3 else None
)


def seconds(values):
    """The optimum is at a=5, b=1, c=6, d=2; every step away from it costs."""
    return 1.0 + 0.2 * sum(abs(values[n] - best) for n, best in zip("abcd", (5, 1, 6, 2), strict=True))


def searched(chooser, trials, batch=4, score=None):
    """Measure by formula; return the points in order."""
    found = [chooser.default()]
    chooser.learn(found[0], seconds(found[0]))
    while len(found) < trials:
        points = chooser.propose(min(batch, trials - len(found)), [], score)
        if not points:
            break
        for point in points:
            chooser.learn(point, seconds(point))
        found += points
    return found


def test_points_are_legal_new_and_seeded():
    points = searched(TreeSearch(SPACE, 1), 200)
    assert len(points) == 200 == len({tuple(p.items()) for p in points})
    assert points[0] == SPACE.defaults()
    for p in points:
        SPACE.check(p)
    assert points == searched(TreeSearch(SPACE, 1), 200) != searched(TreeSearch(SPACE, 2), 200)


def test_a_small_space_is_used_up():
    search = TreeSearch(SMALL, 0, seen=[{"x": 1, "y": "p"}])
    found = [search.default()]
    while points := search.propose(4):
        for point in points:
            search.learn(point, 1.0)
        found += points
    legal = [p for p in SMALL.legal_points() if p != {"x": 1, "y": "p"}]
    assert sorted(map(str, found)) == sorted(map(str, legal))
    assert search.default() is None and search.propose(1) == []


def test_measured_times_lead_to_better_points():
    def best(backup, seed):
        return min(map(seconds, searched(TreeSearch(SPACE, seed, backup=backup), 64)))

    with_times = [best(True, seed) for seed in range(8)]
    without = [best(False, seed) for seed in range(8)]
    assert sum(with_times) / 8 < sum(without) / 8 - 0.05


def test_the_cost_model_chooses_among_completions():
    exact = searched(TreeSearch(SPACE, 3), 24, score=lambda pool: [1.0 / seconds(p) for p in pool])
    blind = searched(TreeSearch(SPACE, 3), 24)
    assert min(map(seconds, exact)) <= 1.2 < min(map(seconds, blind))


def test_a_proposal_is_followed_and_may_be_wrong():
    told = Proposal(MappingProxyType({"a": Weighted((5, 4), (0.9, 0.1)), "c": Weighted((6,), (1.0,))}))
    points = searched(TreeSearch(SPACE, 0, prior=told), 40)[1:]
    assert sum(p["a"] == 5 for p in points) > len(points) / 3 and sum(p["c"] == 6 for p in points) > len(points) / 4
    wrong = Proposal(MappingProxyType({"a": Weighted((0,), (1.0,)), "c": Weighted((0,), (1.0,))}))
    points = searched(TreeSearch(SPACE, 0, prior=wrong), 120)
    assert any(p["a"] == 5 for p in points), "what was not proposed is tried all the same"


def test_weights_add_up_and_leave_none_out():
    decision = Decision("a", (1, 2, 3, 4), 1)
    weights = weights_of(decision, Proposal(MappingProxyType({"a": Weighted((2,), (1.0,))})))
    assert math.isclose(sum(weights.values()), 1.0) and min(weights.values()) > 0 and weights[2] > 0.9
    assert set(weights_of(decision, None).values()) == {0.25}


def test_a_batch_spreads():
    search = TreeSearch(SPACE, 0)
    search.learn(search.default(), 1.0)
    batch = search.propose(16)
    assert len({p["a"] for p in batch}) >= 4
    # What is not measured after all no longer counts.
    for point in batch:
        search.drop(point)
    assert search.root.pending == 0 and search.root.visits == 1


def test_failures_count_as_slow():
    search = TreeSearch(SPACE, 0)
    search.learn(search.default(), 1.0)
    for _ in range(30):
        for point in search.propose(4):
            search.learn(point, None if point["a"] >= 4 else 1.0)
    visits = {value: node.visits for value, node in search.root.children.items()}
    assert sum(visits[v] for v in range(4)) > 2 * sum(visits.get(v, 0) for v in range(4, 8))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(0, 2**16),
)
def test_every_legal_point_comes_once(sizes, forbidden, batch, seed):
    space = SearchSpace(
        tuple(Decision(f"d{i}", tuple(range(n)), 0) for i, n in enumerate(sizes)),
        lambda v: "no" if any(v.values()) and sum(v.values()) == forbidden else None,
    )
    search, rng = TreeSearch(space, seed), random.Random(seed)
    found = [search.default()]
    while points := search.propose(batch):
        for point in points:
            search.learn(point, rng.choice([None, rng.random() + 0.1]))
        found += points
    assert sorted(map(str, found)) == sorted(map(str, space.legal_points()))


def test_strategies_by_name():
    class Bare:
        space = SPACE

    assert set(STRATEGIES) == {"mcts", "evolve", "evolutionary", "random", "default"}
    assert type(chooser_for("evolve", Bare, 0)) is Proposer
    assert isinstance(chooser_for("mcts", Bare, 0, Guide(Proposal(MappingProxyType({})))), TreeSearch)
    with pytest.raises(
        UsageError, match="no strategy is called 'luck'; there are mcts, evolve, evolutionary, random, default"
    ):
        chooser_for("luck", Bare, 0)


def test_random_and_default():
    points = searched(RandomProposer(SPACE, 0), 40, score=lambda pool: [-seconds(p) for p in pool])
    assert len({tuple(p.items()) for p in points}) == 40
    assert points[1:] != searched(Proposer(SPACE, 0), 40)[1:]
    only = DefaultOnly(SPACE, 0)
    assert only.default() == SPACE.defaults() and only.default() is None and only.propose(8) == []
    small = RandomProposer(SMALL, 0)
    assert len(searched_all(small)) == len(list(SMALL.legal_points()))


def searched_all(chooser):
    found = []
    while points := chooser.propose(4):
        found += points
    return found


def test_somebody_is_asked_at_a_few_nodes_and_heard():
    asked = []

    def expand(path, measured):
        asked.append((dict(path), len(measured)))
        return Proposal(MappingProxyType({"b": Weighted((6,), (1.0,))}))

    search = TreeSearch(SPACE, 0, expand=expand)
    points = []
    for _ in range(12):
        for point in search.propose(4):
            points.append(point)
            search.learn(point, 1.0 + point["a"])
    assert len(asked) == EXPANSIONS
    assert asked[0] == ({}, 8)  # the root first, after the first trials
    assert all(after - before >= EXPAND_AFTER for (_, before), (_, after) in pairwise(asked))
    assert set(asked[1][0]) == {"a"}  # then down the most visited path
    late = [p["b"] for p in points[8:]]
    assert late.count(6) > len(late) / 3


def test_no_answer_changes_nothing():
    def run(expand):
        search = TreeSearch(SPACE, 1, expand=expand)
        points = []
        for _ in range(8):
            for point in search.propose(4):
                points.append(point)
                search.learn(point, 1.0 + point["a"])
        return points

    assert run(lambda path, measured: None) == run(None)


def test_constraints_hold_nine_times_in_ten():
    rule = Constraint({}, {"c": (0, 1)})
    prior = Proposal(MappingProxyType({"a": Weighted((2, 3), (0.5, 0.5))}), constraints=(rule,))
    search = TreeSearch(SPACE, 0, prior=prior)
    points = []
    for _ in range(15):  # nothing that is measured speaks against it
        for point in search.propose(4):
            search.learn(point, 1.0)
            points.append(point)
    assert sum(p["c"] in (0, 1) for p in points) > 45
