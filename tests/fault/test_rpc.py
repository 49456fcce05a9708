"""Measuring behind an RPC tracker: servers that die, candidates that take a session with them, nobody there."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from spoiling import crash, hang, spoil, subtract

from qimeng_tvm.errors import SearchError
from qimeng_tvm.hardware import host, target_of
from qimeng_tvm.operators import prim_func
from qimeng_tvm.request import Request
from qimeng_tvm.schedule.apply import make_task
from qimeng_tvm.search import Limits, RecordDatabase, Rpc, tune

pytest.importorskip("tornado", reason="TVM's tracker needs tornado")
KEY = "test-board"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Farm:
    """A tracker and servers on this machine, each a process of its own."""

    def __init__(self):
        self.processes = []
        self.port = free_port()
        self.rpc = Rpc("127.0.0.1", self.port, KEY, wait=60.0)
        self._run("tvm.exec.rpc_tracker", self.port)
        self._until(self._listens)

    def _run(self, module, port, *more):
        command = [sys.executable, "-m", module, "--host", "127.0.0.1", f"--port={port}", f"--port-end={port + 1}"]
        process = subprocess.Popen(
            [*command, *more], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.processes.append(process)
        return process

    def _until(self, true):
        end = time.monotonic() + 90
        while not true():
            assert time.monotonic() < end and self.processes[-1].poll() is None
            time.sleep(0.1)

    def _listens(self):
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def servers(self, key=KEY):
        try:
            return set(dataclasses.replace(self.rpc, key=key).servers())
        except SearchError:
            return set()

    def add_server(self, key=KEY):
        port = free_port()
        process = self._run("tvm.exec.rpc_server", port, "--silent", f"--tracker=127.0.0.1:{self.port}", f"--key={key}")
        self._until(lambda: f"127.0.0.1:{port}" in self.servers(key))
        return process

    @staticmethod
    def kill(process):
        """Kill a process with its children (the sessions of a server are such)."""
        if process.poll() is None:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
        process.wait(30)

    def end(self):
        for process in self.processes:
            self.kill(process)


@pytest.fixture(scope="module")
def farm():
    """A tracker, and one server that no test kills."""
    running = Farm()
    try:
        running.add_server()
        yield running
    finally:
        running.end()


def task_for(m=64, n=64, k=64, threads=1):
    machine = host()
    task = make_task(prim_func(Request("matmul", m, n, k), target_of(machine, threads))[1], machine, threads)
    if task is None:
        pytest.skip(f"{machine.name} has no micro-kernel for float32")
    return task


def sessions_of(server):
    """Sessions are children of the process that listens, itself one of the server."""
    return len(psutil.Process(server.pid).children(recursive=True)) - 1


def trials_in(folder):
    return [r for r in RecordDatabase(folder).load() if r.status != "schedule"]


def test_a_server_killed_in_the_middle_costs_nothing(farm, tmp_path):
    task = task_for(96, 96, 96)
    victim = farm.add_server()
    assert len(farm.servers()) == 2

    def kill_in_a_session():
        while sessions_of(victim):
            time.sleep(0.001)
        while not sessions_of(victim):
            time.sleep(0.001)
        farm.kill(victim)

    def kill_after_four(done, *_):
        if done == 4:
            threading.Thread(target=kill_in_a_session, daemon=True).start()

    found = tune(task, 12, tmp_path, progress=kill_after_four, rpc=farm.rpc)
    assert victim.poll() is not None and len(farm.servers()) == 1
    assert (found.trials, found.measured, found.stopped) == (12, 12, "")
    # What it was at was tried again.
    assert ": lost: server 127.0.0.1:" in (tmp_path / "tune.log").read_text()
    records = trials_in(tmp_path)
    assert [r.error for r in records if r.status != "ok"] == []
    assert len({r.key for r in records}) == len({r.schedule for r in records}) == 12
    assert all(0 < r.seconds_min <= r.seconds_median for r in records)
    assert found.record.seconds_min == min(r.seconds_min for r in records)
    assert found.record.fingerprint == task.hardware.fingerprint
    # What is there counts; the last server does the rest.
    again = tune(task, 13, tmp_path, rpc=farm.rpc)
    assert (again.trials, again.measured) == (13, 1)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (subtract, "numbers", "elements are wrong"),
        (crash, "run", "its session ended"),
        (hang, "run", "no answer within 2 s"),
    ],
    ids=["wrong", "crash", "hang"],
)
def test_bad_candidates_are_recorded_and_the_server_goes_on(farm, tmp_path, monkeypatch, change, status, words):
    """The server that a crash or a hang was on still serves the next candidate."""
    (address,) = farm.servers()
    with monkeypatch.context() as patch:
        spoil(patch, str(task_for().space.defaults()["family"]), change)
        found = tune(task_for(), 2, tmp_path, rpc=farm.rpc, limits=Limits(run=2.0))
    records = trials_in(tmp_path)
    assert found.stopped == "" and [r.status for r in records] == [status] * 2
    assert all(words in r.error and address in r.error and r.seconds_min is None for r in records)
    assert tune(task_for(), 1, tmp_path / "good", rpc=farm.rpc).record.status == "ok"


def test_no_server_left_ends_the_run_and_keeps_what_was_measured(farm, tmp_path):
    task, told, only = task_for(), [], farm.add_server("lonely")

    def kill_at_two(done, *_):
        told.append(done)
        if done == 2:
            farm.kill(only)

    with pytest.raises(SearchError, match="no server under the key 'lonely'"):
        tune(task, 100, tmp_path, progress=kill_at_two, rpc=dataclasses.replace(farm.rpc, key="lonely"))
    assert len(trials_in(tmp_path)) == max(told) >= 2


def test_a_server_with_too_few_threads_is_not_held_against_candidates(farm, tmp_path):
    many = 4 * (os.cpu_count() or 1)
    with pytest.raises(SearchError, match=f"start it with TVM_NUM_THREADS={many}"):
        tune(task_for(256, 256, 256, threads=many), 2, tmp_path, rpc=farm.rpc)
    assert trials_in(tmp_path) == []


def test_nobody_there(tmp_path):
    task, start = task_for(), time.monotonic()
    with pytest.raises(SearchError, match=r"no RPC tracker answers.*start one"):
        tune(task, 2, tmp_path, rpc=Rpc("127.0.0.1", free_port(), KEY))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(SearchError, match="no RPC tracker"):
        tune(task, 2, tmp_path, rpc=Rpc("127.0.0.1", silent.getsockname()[1], KEY))
    assert time.monotonic() - start < 30
    assert trials_in(tmp_path) == []


def test_no_server_under_the_key(farm, tmp_path):
    start = time.monotonic()
    with pytest.raises(SearchError, match=f"'other' .it has {KEY}.: start one.*--key=other"):
        tune(task_for(), 2, tmp_path, rpc=dataclasses.replace(farm.rpc, key="other"))
    assert time.monotonic() - start < 20


def test_the_command(farm, tmp_path):
    line = [sys.executable, "-m", "qimeng_tvm.cli", "tune", "f32 gemm 64x64x64", "--trials", "2", "--json"]
    more = ["--rpc", f"127.0.0.1:{farm.port}", "--key", KEY, "--out", str(tmp_path)]
    done = subprocess.run([*line, *more], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["trials"], found["failed"]) == (2, 0) and found["gflops"] > 0
    assert [r.status for r in trials_in(tmp_path)] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--rpc", "localhost", "--key", "k"], 2, "it is HOST:PORT"),
        (["--rpc", "localhost:9190"], 2, "--key"),
        (["--key", "k"], 2, "--rpc HOST:PORT"),
    ],
)
def test_wrong_options(tmp_path, more, code, words):
    line = [sys.executable, "-m", "qimeng_tvm.cli", "tune", "f32 gemm 64x64x64", "--out", str(tmp_path)]
    done = subprocess.run([*line, *more], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
