"""kill -9 and Ctrl-C at any time: what was measured stays, and the same call goes on."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from qimeng_tvm.hardware import host, target_of
from qimeng_tvm.operators import prim_func
from qimeng_tvm.request import Request
from qimeng_tvm.schedule.apply import make_task
from qimeng_tvm.search import RecordDatabase, tune
from qimeng_tvm.search.traces import open_database

SCRIPT = textwrap.dedent(
    """
    import sys
    from qimeng_tvm.hardware import host, target_of
    from qimeng_tvm.operators import prim_func
    from qimeng_tvm.request import Request
    from qimeng_tvm.schedule.apply import make_task
    from qimeng_tvm.search import tune
    machine = host()
    task = make_task(prim_func(Request("matmul", 32, 32, 32), target_of(machine, 1))[1], machine, 1)
    found = tune(task, int(sys.argv[2]), sys.argv[1], progress=lambda done, *_: print("done", done, flush=True))
    print("end", found.trials, found.measured, found.stopped or "-", found.resume, flush=True)
    """
)


class Run:
    """A tuning process whose output is read as it comes."""

    def __init__(self, folder, trials):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), str(trials)], stdout=subprocess.PIPE, text=True
        )
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")))
        self.reader.start()

    def wait_until(self, done):
        end = time.monotonic() + 60
        while self.done < done:
            assert self.process.poll() is None and time.monotonic() < end, self.lines
            time.sleep(0.01)

    @property
    def done(self):
        return max([int(line.split()[1]) for line in list(self.lines) if line.startswith("done")], default=-1)

    def end(self, timeout=60):
        code = self.process.wait(timeout)
        self.reader.join()
        return code


@pytest.fixture(scope="module")
def task():
    machine = host()
    found = make_task(prim_func(Request("matmul", 32, 32, 32), target_of(machine, 1))[1], machine, 1)
    if found is None:
        pytest.skip(f"{machine.name} has no micro-kernel for float32")
    return found


def trials_in(folder):
    return [r for r in RecordDatabase(folder).load() if r.status != "schedule"]


@pytest.mark.filterwarnings("ignore:.*cut off:RuntimeWarning")
def test_kill_at_random_points_loses_nothing(tmp_path, task):
    rng = random.Random()
    seed = rng.randrange(10**9)
    rng.seed(seed)
    print("seed", seed)
    told = 0
    for _ in range(3):
        run = Run(tmp_path, 1000)
        run.wait_until(told + rng.randrange(1, 4))
        time.sleep(rng.random() * 0.5)
        run.process.send_signal(signal.SIGKILL)
        run.end()
        # What the run had told is on disk; at most one more, which it had no time to tell.
        kept = len(trials_in(tmp_path))
        assert run.done <= kept <= run.done + 1
        assert run.done > told
        told = kept
    last = tune(task, told + 2, tmp_path)
    assert (last.trials, last.measured, last.stopped) == (told + 2, 2, "")
    records = trials_in(tmp_path)
    assert len({r.key for r in records}) == len({r.schedule for r in records}) == told + 2
    # Nothing was verified, so nothing of it is applied; TVM reads its part of the folder.
    assert not any(r.verified for r in records)
    assert RecordDatabase(tmp_path).best(task) is None
    timed = sum(r.status == "ok" for r in records)
    # A kill between TVM's record and ours leaves one that only TVM's file has.
    assert timed <= len(open_database(tmp_path)) <= timed + 3


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interrupt_ends_well_and_says_how_to_go_on(tmp_path, task):
    run = Run(tmp_path, 1000)
    run.wait_until(2)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 0
    words = run.lines[-1].split(maxsplit=4)
    assert words[0] == "end" and words[3] == "interrupted" and "goes on from there" in words[4]
    assert len(trials_in(tmp_path)) == int(words[1]) >= 2
