"""Measure candidates on boards behind a TVM RPC tracker: built here, run there."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.compiler import linker_for
from qimeng_tvm.errors import SearchError
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.hardware.host import host
from qimeng_tvm.hardware.target import target_dict
from qimeng_tvm.search.board import Exported
from qimeng_tvm.search.candidate import Timing
from qimeng_tvm.search.measure import Job, Limits, judge, reason_of
from qimeng_tvm.search.session import Measurement
from qimeng_tvm.search.tracker import Rpc, Server

BOARD_MODULE = "qimeng_tvm.search.board"
#: Servers that a candidate is tried on, when the connection to one breaks.
_TRIES = 2
#: Seconds to compute what a function must give, once; to connect, and for a server to end a session that is too long.
_ORACLE, _GRACE = 120.0, 15.0
_LOG = logging.getLogger("tvm.s_tir.meta_schedule.qimeng")


class Boards:
    """The servers of a key, and what builds for them and talks to them.

    Parameters
    ----------
    rpc : Rpc
        Tracker and key.
    limits : Limits
        Timeouts of one candidate.
    machine : Hardware
        What the boards are, with its measured peaks.
    builders : sequence of Worker
        Compile and link.
    clients : sequence of Worker
        Each holds one session at a time; they need the network.
    stopping : callable
        Whether to wait for nothing more.
    """

    def __init__(
        self,
        rpc: Rpc,
        limits: Limits,
        machine: Hardware,
        builders: Sequence[Worker],
        clients: Sequence[Worker],
        stopping: Callable[[], bool],
    ) -> None:
        self.rpc = rpc
        self.limits = limits
        self.machine = machine
        self.linker = linker_for(machine)
        self._workers = (*builders, *clients)
        self._builders = _line_of(builders)
        self._clients = _line_of(clients)
        self._stopping = stopping
        self._aborted = False
        self._here = target_dict(host(), 1)

    def export(self, job: Job) -> Exported | Measurement:
        """Build a candidate here."""
        payload = (job.module, job.target, self.linker)
        with _borrowed(self._builders) as worker:
            for _ in range(2):
                outcome = worker.call(f"{BOARD_MODULE}:export", payload, self.limits.build)
                if outcome.kind != "crash":
                    break
        if not outcome.ok:
            return Measurement("build", error=reason_of(outcome))
        if not isinstance(outcome.value, Exported):
            return Measurement("build", error=f"the worker answered with a {type(outcome.value).__name__}")
        return outcome.value

    def attempt(self, job: Job, exported: Exported, avoid: Sequence[Server]) -> tuple[Server | None, Timing] | None:
        """Measure a candidate on a server, rather not on those to avoid; None when the run is being stopped."""
        with _borrowed(self._clients) as client:
            ready = client.call(f"{BOARD_MODULE}:prepare", (job.probe, self._here), _ORACLE)
            if not ready.ok:
                return None, Timing("error", message=f"no expected output: {reason_of(ready)}")
            server = self._server([str(s) for s in avoid])
            if server is None:
                return None
            address, seconds = (server.host, server.port, server.match), self.limits.run
            payload = (address, exported, job.probe, self._here, job.threads, job.best, seconds)
            outcome = client.call(f"{BOARD_MODULE}:measure", payload, seconds + _GRACE)
        if not outcome.ok:
            return server, Timing("lost", message=reason_of(outcome))
        if not isinstance(outcome.value, Timing):
            return server, Timing("error", message=f"the worker answered with a {type(outcome.value).__name__}")
        return server, outcome.value

    def _server(self, avoid: Sequence[str]) -> Server | None:
        server = self.rpc.request(self._over)
        if server is not None and str(server) in avoid and len(self.rpc.servers()) > 1:
            # Its ticket lapses after some seconds, and it is free again.
            server = self.rpc.request(self._over)
        return server

    def _over(self) -> bool:
        return self._aborted or self._stopping()

    def abort(self) -> None:
        """End all calls under way, from another thread."""
        self._aborted = True
        for worker in self._workers:
            worker.abort()


class BoardLane:
    """Build a job here and measure it on whichever server is free."""

    def __init__(self, boards: Boards) -> None:
        self.boards = boards
        self._built: tuple[str, Exported] | None = None

    def build(self, job: Job) -> Measurement | None:
        """Compile and link a candidate; None when that went well."""
        made = self.boards.export(job)
        if isinstance(made, Measurement):
            return made
        self._built = (job.trial.token, made)
        return None

    def measure(self, job: Job) -> Measurement | None:
        """Check and time a candidate on a server, and on another one if the first is lost; it is built if need be.

        Raises
        ------
        SearchError
            If there is no server left, or one cannot run what is built for its kind.
        """
        if self._built is None or self._built[0] != job.trial.token:
            refused = self.build(job)
            if refused is not None:
                return refused
        assert self._built is not None
        exported, self._built = self._built[1], None
        lost: list[Server] = []
        reasons = []
        while True:
            answer = self.boards.attempt(job, exported, lost)
            if answer is None:
                return None
            server, timing = answer
            if timing.kind == "ok":
                return judge(job, timing, self.boards.machine)
            reasons.append(f"server {server}: {timing.message}" if server is not None else timing.message)
            _LOG.warning("measure of %s: %s: %s", job.trial.token, timing.kind, reasons[-1])
            if timing.kind == "unfit":
                # Not the candidate's fault, and so not to be recorded of it.
                raise SearchError(
                    f"the {reasons[-1]}; it must run what is built for {job.trial.task.task.hardware.name}: mend it, "
                    "or take it off the tracker, and run the same again"
                )
            if timing.kind == "numbers":
                return Measurement("numbers", error=reasons[-1])
            if timing.kind != "lost" or server is None or len(reasons) == _TRIES:
                return Measurement("run", error=f"{timing.kind}: {'; then '.join(reasons)}")
            lost.append(server)

    def abort(self) -> None:
        """End a call under way, from another thread; those of the other lanes end, too."""
        self.boards.abort()


def _line_of(workers: Sequence[Worker]) -> queue.SimpleQueue[Worker]:
    line: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        line.put(worker)
    return line


@contextmanager
def _borrowed(line: queue.SimpleQueue[Worker]) -> Iterator[Worker]:
    worker = line.get()
    try:
        yield worker
    finally:
        line.put(worker)
