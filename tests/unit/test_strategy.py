"""What is proposed, and in which order; nothing is measured here."""

import math

import numpy as np
import pytest
from tvm import te

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.hardware.model import Cache, Hardware
from qimeng_tvm.schedule.apply import Task
from qimeng_tvm.schedule.contract import Decision, ScheduleRule, SearchSpace
from qimeng_tvm.schedule.readers import analyze
from qimeng_tvm.search import Record, RecordDatabase
from qimeng_tvm.search.cost import ENOUGH, DecisionModel, Group, RuleModel
from qimeng_tvm.search.features import decision_rows
from qimeng_tvm.search.proposer import Proposer
from qimeng_tvm.search.session import Measurement, Session, new_state
from qimeng_tvm.search.strategy import DecisionSearch

MACHINE = Hardware("test", "x86", "x86-64", "x86_64-linux-gnu", 2, 1, 256, 16, (Cache(1, 32768),), frozenset(), 1 << 30)

LARGE = SearchSpace(
    tuple(Decision(name, tuple(range(1, 41)), 7) for name in "abcd"),
    lambda v: "odd" if (v["a"] + v["b"]) % 2 else None,
)
SMALL = SearchSpace(
    (Decision("x", (1, 2, 3, 4), 2), Decision("y", ("p", "q"), "p")), lambda v: "no" if v["x"] == 3 else None
)


class Rule(ScheduleRule):
    """Split M by ``tile``; TVM itself refuses ``bad``; ``echo`` changes nothing."""

    name = "test.rule"

    def match(self, block, hardware):
        return True

    def space(self, block, hardware):
        return SearchSpace(
            (
                Decision("tile", (1, 2, 4, 8), 4),
                Decision("bad", ("no", "tvm", "python"), "no"),
                Decision("echo", (1, 2), 1),
            )
        )

    def apply(self, sch, block, choose, info, hardware):
        loops = sch.get_loops(block)
        sch.split(loops[0], [None, choose("tile")])
        choose("echo")
        if choose("bad") == "tvm":
            sch.reorder(loops[1], loops[1])
        if choose("bad") == "python":
            raise IndexError("no such loop")


@pytest.fixture(scope="module")
def task():
    n = 16
    a, b = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B")
    k = te.reduce_axis((0, n), name="k")
    func = te.create_prim_func([a, b, te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")])
    rule, info = Rule(), analyze(func, 1)
    return Task(func, info, MACHINE, rule, rule.space(info, MACHINE))


def search_of(task, folder, seed=0, total=1000, per_batch=4):
    database = RecordDatabase(folder)
    records = database.of_task(task)
    state = new_state(task, seed, records)
    session = Session(database, [state], total=total, done=state.recorded, stamp=Record("", "", "", {}, seed=seed))
    search = DecisionSearch(state, session)
    search.pre_tuning(total, per_batch, [])
    return search, session, state


def run_out(search, session, seconds=lambda values: 1.0 / values["tile"]):
    """Measure, by formula, until the strategy ends; return the values in order."""
    order = []
    while trials := search.next_trials():
        session.add_batch(trials)
        for trial in trials:
            time = seconds(trial.values)
            session.finish(trial, Measurement("ok", time, time, 1.0 / time), (), None)
            order.append(dict(trial.values))
    return order


def test_proposals_are_legal_new_and_seeded():
    def sequence(seed):
        proposer = Proposer(LARGE, seed)
        points = [proposer.default()]
        for _ in range(20):
            points += proposer.propose(8, points[-3:], lambda pool: [-p["c"] for p in pool])
        return points

    points = sequence(1)
    assert points[0] == LARGE.defaults()
    assert len(points) == 161 == len({tuple(p.items()) for p in points})
    assert all(LARGE.illegal(p) is None for p in points)
    for p in points:
        LARGE.check(p)
    assert points == sequence(1)
    assert points != sequence(2)


def test_score_decides_but_for_epsilon():
    greedy = Proposer(LARGE, 0, epsilon=0.0).propose(8, score=lambda pool: [-p["c"] for p in pool])
    assert [p["c"] for p in greedy] == sorted(p["c"] for p in greedy)
    blind = Proposer(LARGE, 0, epsilon=1.0).propose(8, score=lambda pool: [-p["c"] for p in pool])
    assert sum(p["c"] for p in blind) > sum(p["c"] for p in greedy)


def test_seen_points_are_not_proposed_and_small_spaces_end():
    legal = list(SMALL.legal_points())
    proposer = Proposer(SMALL, 0, seen=legal[:2])
    found = []
    while points := proposer.propose(4):
        found += points
    assert sorted(map(str, found)) == sorted(map(str, legal[2:]))
    assert proposer.default() is None


def test_space_with_one_legal_point_in_thousands_is_found():
    space = SearchSpace(
        tuple(Decision(n, tuple(range(20)), 0) for n in "abc"),
        lambda v: None if tuple(v.values()) in {(0, 0, 0), (19, 18, 17)} else "no",
    )
    proposer = Proposer(space, 0)
    assert proposer.default() == {"a": 0, "b": 0, "c": 0}
    assert proposer.propose(3) == [{"a": 19, "b": 18, "c": 17}]
    assert proposer.propose(3) == []


def test_default_first_no_duplicates_and_refusals_recorded(task, tmp_path):
    search, session, state = search_of(task, tmp_path)
    order = run_out(search, session)
    assert order[0] == task.space.defaults()
    # Four schedules exist; ``echo`` gives the same ones again, and those are not measured.
    assert sorted(v["tile"] for v in order) == [1, 2, 4, 8]
    assert all(v["bad"] == "no" for v in order)
    records = RecordDatabase(tmp_path).load()
    refused = [r for r in records if r.status == "schedule"]
    assert {r.decisions["bad"] for r in refused} == {"tvm", "python"}
    assert all(r.error and r.seconds_min is None for r in refused)
    assert any("IndexError: no such loop" in r.error for r in refused)
    assert session.done == 4 and state.best.decisions["tile"] == 8


def test_resume_measures_only_what_is_missing(task, tmp_path):
    search, session, _ = search_of(task, tmp_path, total=2)
    first = run_out(search, session)
    assert len(first) == 2 and session.room == 0
    search, session, state = search_of(task, tmp_path, total=1000)
    assert state.recorded == 2
    second = run_out(search, session)
    assert sorted(v["tile"] for v in first + second) == [1, 2, 4, 8]


def test_stop_and_room_limit_the_batch(task, tmp_path):
    search, session, _ = search_of(task, tmp_path / "a", total=3, per_batch=8)
    assert len(search.next_trials()) == 3
    search, session, _ = search_of(task, tmp_path / "b")
    session.stop("enough")
    assert search.next_trials() == []
    late = Session(session.database, session.tasks, total=9, done=0, stamp=Record("", "", "", {}), deadline=0.0)
    assert late.stopping and late.reason == "time is up"


def test_rule_that_refuses_everything_ends(task, tmp_path):
    class Broken(Rule):
        def apply(self, sch, block, choose, info, hardware):
            raise ScheduleError("never")

    broken = Task(task.func, task.info, MACHINE, Broken(), task.space)
    search, session, _ = search_of(broken, tmp_path)
    assert run_out(search, session) == []
    assert all("never" in r.error for r in session.database.load())


def test_model_learns_which_decision_matters():
    rng = np.random.default_rng(0)
    points = [{n: int(v) for n, v in zip("abcd", rng.integers(1, 41, 4), strict=True)} for _ in range(120)]
    model = DecisionModel(LARGE)
    assert not model.ready and not model.score(points[:3]).any()
    for p in points[:80]:
        model.add(p, 1.0 + abs(p["c"] - 20))
    model.add(points[0], None)
    assert model.ready
    # Which of the slow ones is slower is of no interest.
    truth = np.array([1.0 / min(8.0, 1.0 + abs(p["c"] - 20)) for p in points[80:]])
    assert np.corrcoef(model.score(points[80:]), truth)[0, 1] > 0.75


def test_model_uses_the_prior_before_there_is_data():
    model = DecisionModel(LARGE, prior=lambda v: float(v["a"]))
    points = [{"a": a, "b": 1, "c": 1, "d": 1} for a in (5, 1, 9)]
    assert list(np.argsort(-model.score(points))) == [1, 0, 2]
    for i in range(ENOUGH):
        assert not model.ready  # a few trials of one task alone say less than the estimate
        model.add(points[0] | {"b": i % 40 + 1, "c": i // 40 + 1}, 1.0 + i)
    assert model.ready and np.isfinite(model.score(points)).all()


def test_one_model_serves_all_operators_of_a_rule():
    rng = np.random.default_rng(0)

    def time_of(c, scale):
        return scale * (1.0 + abs(c - 20) / 4)

    shared = RuleModel(0)
    for scale in (1.0, 100.0):  # how long an operator takes is not what is learnt
        known = DecisionModel(LARGE, lambda v: 1.0, shared=shared, row=lambda v: [v["c"]], name=str(scale))
        for c in rng.integers(1, 41, ENOUGH // 2):
            known.add({"a": 1, "b": 1, "c": int(c), "d": 1}, time_of(c, scale))
    model = DecisionModel(LARGE, lambda v: float(v["c"]), shared=shared, row=lambda v: [v["c"]], name="new")
    assert model.ready  # without a trial of its own
    points = [{"a": 1, "b": 1, "c": c, "d": 1} for c in (1, 10, 19, 35)]
    assert np.argmax(model.score(points)) == 2
    # Decisions that are no blocking have no common features: the estimate is what there is.
    alone = DecisionModel(LARGE, lambda v: float(v["c"]), shared=shared, row=lambda v: None, name="other")
    assert list(np.argsort(-alone.score(points))) == [0, 1, 2, 3]


def test_failed_points_are_slow_ones():
    group = Group()
    for seconds in (1.0, 2.0, None, 1e9):
        group.add([0.0], seconds)
    assert group.timed == 3 and np.allclose(np.exp(group.slowdowns()), [1, 2, 8, 8])
    empty = Group()
    empty.add([0.0], None)
    assert empty.timed == 0 and np.allclose(np.exp(empty.slowdowns()), [8])


def test_features_read_the_numbers_in_values():
    space = SearchSpace((Decision("micro_kernel", ("6x2", "4x3"), "6x2"), Decision("kc", (64, 1 << 30), 64)))
    rows = decision_rows(space, [{"micro_kernel": "4x3", "kc": 1 << 30}])
    assert rows.tolist() == [[1.0, 4.0, 3.0, 12.0, 1.0, math.log2(1 << 30)]]
