"""What a lane does when a board is lost, slow or wrong; the boards here are a list of answers."""

from types import SimpleNamespace

import pytest

from qimeng_tvm.errors import SearchError
from qimeng_tvm.search.board import Exported
from qimeng_tvm.search.candidate import Timing
from qimeng_tvm.search.remote import BoardLane
from qimeng_tvm.search.session import Measurement
from qimeng_tvm.search.tracker import Server

ONE, TWO = Server("one", 9091, "k:1"), Server("two", 9092, "k:2")
GOOD = Timing("ok", 0.001, 0.0011)
LOST = Timing("lost", message="its session ended")


class Boards:
    """Gives its answers in turn, and notes whom it was to avoid."""

    def __init__(self, *answers, export=None):
        self.machine = None
        self.answers = list(answers)
        self.avoided = []
        self.exported = export or Exported(b"", False, ())
        self.exports = 0

    def export(self, job):
        self.exports += 1
        return self.exported

    def attempt(self, job, exported, avoid):
        assert exported is self.exported
        self.avoided.append([str(s) for s in avoid])
        return self.answers.pop(0)


def job():
    info = SimpleNamespace(flops=2e6, a_dtype="float32")
    task = SimpleNamespace(info=info, hardware=SimpleNamespace(name="a board"))
    return SimpleNamespace(trial=SimpleNamespace(token="t", task=SimpleNamespace(task=task)))


def test_a_good_one():
    boards = Boards((ONE, GOOD))
    lane = BoardLane(boards)
    assert lane.build(job()) is None
    found = lane.measure(job())
    assert (found.status, found.seconds_min, found.gflops) == ("ok", 0.001, pytest.approx(2.0))
    # It was built once; what was not built beforehand is built on the way.
    assert boards.exports == 1
    boards.answers.append((ONE, GOOD))
    assert lane.measure(job()).status == "ok" and boards.exports == 2


def test_a_lost_server_costs_nothing():
    boards = Boards((ONE, LOST), (TWO, GOOD))
    assert BoardLane(boards).measure(job()).status == "ok"
    assert boards.avoided == [[], ["one:9091"]] and boards.exports == 1


def test_lost_twice_is_recorded_with_both():
    found = BoardLane(Boards((ONE, LOST), (TWO, LOST))).measure(job())
    assert found.status == "run" and found.seconds_min is None
    assert found.error == "lost: server one:9091: its session ended; then server two:9092: its session ended"


@pytest.mark.parametrize(
    ("timing", "status", "error"),
    [
        (Timing("numbers", message="3 of 9 elements are wrong"), "numbers", "server one:9091: 3 of 9"),
        (Timing("timeout", message="no answer within 2 s"), "run", "timeout: server one:9091: no answer"),
        (Timing("error", message="RuntimeError: no"), "run", "error: server one:9091: RuntimeError: no"),
    ],
)
def test_what_the_candidate_is_to_blame_for_is_not_tried_again(timing, status, error):
    found = BoardLane(Boards((ONE, timing))).measure(job())
    assert found.status == status and found.error.startswith(error)


def test_a_server_that_cannot_run_any_ends_the_run():
    boards = Boards((ONE, Timing("unfit", message="RuntimeError: 1 threads where 2 are asked for")))
    with pytest.raises(SearchError, match=r"server one:9091: RuntimeError: 1 threads.*built for a board"):
        BoardLane(boards).measure(job())


def test_stopped_while_waiting():
    assert BoardLane(Boards(None)).measure(job()) is None
    assert BoardLane(Boards((ONE, LOST), None)).measure(job()) is None


def test_what_cannot_be_built_is_not_measured():
    refused = Measurement("build", error="error: no")
    lane = BoardLane(Boards(export=refused))
    assert lane.build(job()) is refused
    assert lane.measure(job()) is refused
