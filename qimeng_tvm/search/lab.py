"""Open the lab that a run measures in: workers of this machine, or boards behind an RPC tracker."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from qimeng_tvm.check.worker import Limits as WorkerLimits
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import CheckError
from qimeng_tvm.hardware.host import host
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.search.measure import WORKER_MODULE, Bench, Lab, Limits
from qimeng_tvm.search.remote import BOARD_MODULE, BoardLane, Boards
from qimeng_tvm.search.session import Session
from qimeng_tvm.search.tracker import Rpc

_GIB = 1 << 30
#: TVM's pool threads wait for work without sleeping, some 0.1 s, on the cores that the next candidate is measured on.
_NO_WAITING = {"TVM_THREAD_POOL_SPIN_COUNT": "0"}


@contextmanager
def open_lab(session: Session, limits: Limits, machine: Hardware, rpc: Rpc | None, jobs: int) -> Iterator[Lab]:
    """Start what builds and measures the session's tasks; it ends with the ``with`` block.

    Here there are two workers that take turns, one building while the other one measures, where the tasks use one of
    several cores; else one: the pools of two processes would get into each other's way. With boards there is a lane
    more than there are boards.

    Parameters
    ----------
    session : Session
        Told to stop when a worker cannot be started.
    limits : Limits
        Timeouts of one candidate.
    machine : Hardware
        What the tasks are for, with its measured peaks.
    rpc : Rpc, optional
        Where the boards are.
    jobs : int
        How many candidates there may be.

    Raises
    ------
    SearchError
        If there is no tracker, or none of the boards.
    BuildError
        If no linker for the boards is installed.
    """
    here = host()
    memory = WorkerLimits(memory_bytes=max(8 * _GIB, here.memory_bytes // 2))
    with ExitStack() as stack:

        def worker(module: str, *, confined: bool = True, env: Mapping[str, str] | None = None) -> Worker:
            return stack.enter_context(Worker(memory, preload=(module,), env=env, namespaces=confined))

        if rpc is None:
            threads = max(state.task.info.threads for state in session.tasks)
            width = min(2 if threads == 1 < here.cores else 1, jobs)
            workers = [worker(WORKER_MODULE, env=_NO_WAITING if threads == 1 else None) for _ in range(width)]
            lanes: list[Any] = [Bench(w, limits, machine) for w in workers]
        else:
            servers = rpc.servers()
            width = min(len(servers) + 1, jobs)
            # What connects to a board has the network, and runs nothing that was not written here.
            clients = [worker(BOARD_MODULE, confined=False) for _ in range(min(len(servers), width))]
            builders = [worker(BOARD_MODULE) for _ in range(min(width, here.cores))]
            boards = Boards(rpc, limits, machine, builders, clients, lambda: session.stopping)
            lanes = [BoardLane(boards) for _ in range(width)]
            workers = [*builders, *clients]
        # They import TVM while the first schedules are built.
        starting = [threading.Thread(target=_start, args=(one, session), daemon=True) for one in workers]
        for thread in starting:
            thread.start()
        yield Lab(lanes, in_turn=rpc is None, starting=starting if rpc is None else ())


def _start(worker: Worker, session: Session) -> None:
    try:
        worker.start()
    except CheckError as error:
        session.stop(str(error))
