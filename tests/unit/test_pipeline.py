"""Lanes that build and measure: what may overlap, what comes in which order, and how it ends."""

import threading
import time

import pytest

from qimeng_tvm.search.pipeline import run_lanes


class Lane:
    """Takes its time, and notes what it does."""

    def __init__(self, log, refuse=(), fail=None, build_seconds=0.0):
        self.log = log
        self.refuse = refuse
        self.fail = fail
        self.build_seconds = build_seconds
        self.aborted = threading.Event()

    def build(self, job):
        self.log.append(("build", job))
        time.sleep(self.build_seconds)
        return f"no {job}" if job in self.refuse else None

    def measure(self, job):
        if job == self.fail:
            raise RuntimeError("out of order")
        self.log.append(("measure", job))
        time.sleep(0.01)
        self.log.append(("measured", job))
        return f"yes {job}"

    def abort(self):
        self.aborted.set()


def of(log, *kinds):
    return [entry for entry in log if entry[0] in kinds]


def test_in_turn_one_measures_and_is_recorded_before_the_next():
    log, main = [], threading.current_thread()

    def finish(job, found):
        assert threading.current_thread() is main
        log.append(("finish", job))

    found = run_lanes([Lane(log), Lane(log)], range(8), finish, in_turn=True)
    assert found == [f"yes {i}" for i in range(8)]
    expected = [(kind, i) for i in range(8) for kind in ("measure", "measured", "finish")]
    assert of(log, "measure", "measured", "finish") == expected


def test_the_next_is_built_while_one_is_measured():
    built, order = threading.Event(), []

    class Waiting(Lane):
        def build(self, job):
            if job == 1:
                built.set()

        def measure(self, job):
            order.append(job)
            # With one after the other, this would never come true.
            assert job != 0 or built.wait(10)
            return job

    assert run_lanes([Waiting([]), Waiting([])], [0, 1], lambda *_: None, in_turn=True) == [0, 1]
    assert order == [0, 1]


def test_out_of_turn_all_measure_at_once():
    barrier = threading.Barrier(3, timeout=10)

    class Together(Lane):
        def measure(self, job):
            barrier.wait()
            return job

    lanes = [Together([]) for _ in range(3)]
    assert run_lanes(lanes, [0, 1, 2], lambda *_: None, in_turn=False) == [0, 1, 2]


@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_what_is_refused_takes_its_place(lanes, in_turn):
    finished = []
    found = run_lanes(
        [Lane([], refuse=(1, 4)) for _ in range(lanes)], range(6), lambda *r: finished.append(r), in_turn=in_turn
    )
    assert found == ["yes 0", "no 1", "yes 2", "yes 3", "no 4", "yes 5"]
    assert sorted(finished) == list(enumerate(found))
    assert not in_turn or finished == sorted(finished)


def test_stopping_ends_after_what_is_measured():
    log, stop = [], threading.Event()
    found = run_lanes([Lane(log), Lane(log)], range(9), lambda *_: stop.set(), stop.is_set, in_turn=True)
    assert found == ["yes 0"] + [None] * 8
    assert of(log, "measure") == [("measure", 0)]


@pytest.mark.parametrize("in_turn", [True, False])
def test_what_a_lane_raises_comes_out_and_ends_the_others(in_turn):
    log = []
    lanes = [Lane(log, fail=2) for _ in range(2)]
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="out of order"):
        run_lanes(lanes, range(50), lambda *_: None, in_turn=in_turn)
    assert all(lane.aborted.is_set() for lane in lanes)
    assert threading.active_count() == before
    assert len(of(log, "measure")) < 10


def test_what_finish_raises_ends_all_and_aborts_calls_under_way():
    class Stuck(Lane):
        def measure(self, job):
            if job == 0:
                return job
            assert self.aborted.wait(10)
            return job

    def finish(job, found):
        raise OSError("disk full")

    before = threading.active_count()
    with pytest.raises(OSError, match="disk full"):
        run_lanes([Stuck([]), Stuck([])], range(4), finish, in_turn=False)
    assert threading.active_count() == before


def test_nothing_to_do():
    assert run_lanes([Lane([])], [], lambda *_: None, in_turn=True) == []
