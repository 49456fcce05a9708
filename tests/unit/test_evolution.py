"""TVM's evolutionary search over a rule's decisions; nothing is measured here."""

import random

import pytest

from qimeng_tvm.api import task_of
from qimeng_tvm.hardware import host
from qimeng_tvm.request import parse
from qimeng_tvm.search.evolution import DecisionMutator, Evolution, annotated, decisions_in, random_points


@pytest.fixture(scope="module")
def task():
    return task_of(parse("f32 GEMM 32x32x32"), host(), 1)


def test_decisions_travel_in_the_trace(task):
    values = task.space.defaults()
    assert decisions_in(annotated(task, values).trace) == values
    from qimeng_tvm.schedule.apply import build_schedule

    assert decisions_in(build_schedule(task, values).trace) is None


def test_a_mutation_is_a_legal_neighbour_that_the_rule_made(task):
    mutator = DecisionMutator(task, 0)
    start = task.space.defaults()
    trace = annotated(task, start).trace
    for _ in range(5):
        values = decisions_in(mutator.apply(trace))
        assert sum(values[name] != start[name] for name in start) == 1
        task.space.check(values)


def test_random_points_begin_with_the_defaults(task):
    points = random_points(task, random.Random(0), 6)
    assert points[0] == task.space.defaults() and len(points) == 6
    assert len({tuple(p.items()) for p in points}) == 6
    for point in points:
        task.space.check(point)


@pytest.mark.parametrize("line", ["f32 GEMM 32x32x32", "f32 GEMM 20x40x33 with weights"])
def test_it_proposes_new_legal_points_by_the_score_and_learns(line):
    task = task_of(parse(line), host(), 1)  # weights are padded while they are packed beforehand
    search = Evolution(task, 3)
    default = search.default()
    search.learn(default, 1.0)
    asked = []

    def score(points):
        asked.extend(points)
        return [1.0 if p["unroll"] == 4 else 0.0 for p in points]

    first = search.propose(4, (), score)
    assert len(first) == 4 and asked
    for number, point in enumerate(first):
        task.space.check(point)
        search.learn(point, None if number == 0 else 1.0 + number)
    second = search.propose(4, (), score)
    keys = [search.key(p) for p in (default, *first, *second)]
    assert len(set(keys)) == len(keys)  # none twice
    assert sum(p["unroll"] == 4 for p in second) >= 2  # TVM's choice follows the score
