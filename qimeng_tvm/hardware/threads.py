"""TVM's thread pool, set to the cores in force."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm

from qimeng_tvm.errors import HardwareError
from qimeng_tvm.hardware import sysfs
from qimeng_tvm.hardware.host import ROOT, allowed_cpus

_ONE_CORE_PER_THREAD = -2  # ThreadGroup::kSpecifyOneCorePerThread
_state = threading.local()


def cpus_by_core(allowed: frozenset[int], root: Path = ROOT) -> tuple[int, ...]:
    """Order logical CPUs: one of every physical core first, then the second hardware threads, and so on."""
    rank = {cpu: sorted(sysfs.core_of(cpu, root) & allowed).index(cpu) for cpu in allowed}
    return tuple(sorted(allowed, key=lambda cpu: (rank[cpu], cpu)))


def configure_threads(n: int) -> int:
    """Have TVM's parallel loops use ``n`` threads, and return how many are in force.

    TVM's pool belongs to the calling (Python) thread, and its size is fixed when it is first touched: it is made as
    large as the machine here, then used in part, so 1 -> 2 -> 1 works. At most one thread per usable logical CPU.

    Raises
    ------
    HardwareError
        If ``n`` is below 1.
    """
    if n < 1:
        raise HardwareError(f"{n} threads asked for; at least 1 is needed")
    config: Any = tvm.get_global_func("runtime.config_threadpool")
    count: Any = tvm.get_global_func("runtime.NumThreads")
    allowed = _usable_cpus()
    cpus = cpus_by_core(allowed)
    wanted = min(n, len(cpus))
    try:
        # The length of the list is also TVM's "maximum concurrency": without a list it falls back to half the
        # logical CPUs, and with one entry loops run inline, without the pool.
        pool = getattr(_state, "pool", 0) or max(wanted, len({sysfs.core_of(cpu, ROOT) for cpu in cpus}))
        config(_ONE_CORE_PER_THREAD, wanted, [str(cpu) for cpu in cpus[:pool]])
        _state.pool = pool
        if wanted == 1:
            config(_ONE_CORE_PER_THREAD, 1, [str(cpus[0])])
        in_force = int(count())
    finally:
        # TVM binds the calling thread too; left so, every thread and process started later would inherit it.
        # By way of the first core: a caller that sits on a worker's core may stay there for many milliseconds, and
        # the two share it at half speed while another core is idle.
        _bind({cpus[0]})
        _bind(allowed)
    if in_force < wanted:
        warnings.warn(
            f"TVM's thread pool was made with {in_force} threads before configure_threads({n}); "
            "call it before running anything with TVM, or from a new thread",
            RuntimeWarning,
            stacklevel=2,
        )
    _state.in_force = in_force
    return in_force


def settle_threads(n: int) -> None:
    """Bind TVM's pool to one core a thread and the caller to the first, for as long as nobody binds them otherwise.

    For a process that does nothing but time: a caller that shares a worker's core halves a parallel loop.
    """
    allowed = _usable_cpus()
    if configure_threads(n) > 1:
        home = frozenset({cpus_by_core(allowed)[0]})
        _bind(home)
        _state.settled = (home, allowed)


def _usable_cpus() -> frozenset[int]:
    """Return the CPUs this thread may use, those it gave up by :func:`settle_threads` included."""
    allowed = allowed_cpus()
    home, before = getattr(_state, "settled", (None, allowed))
    return before if home == allowed else allowed


def threads_in_force() -> int | None:
    """Return what :func:`configure_threads` last put in force for this thread; None when it was not called.

    TVM itself is not asked: asking creates the pool, at its default size for good.
    """
    return getattr(_state, "in_force", None)


@contextmanager
def use_threads(n: int, *, pin: bool = False) -> Iterator[int]:
    """Use ``n`` threads inside a ``with`` block, then go back to what was in force (if anything was).

    Parameters
    ----------
    n : int
        Threads, as for :func:`configure_threads`.
    pin : bool
        Keep the calling thread on the first core while inside: timings are then free of its wandering, onto a
        worker's core or to where :func:`beside` has others work. Start no threads or processes inside: they inherit it.
    """
    before, allowed = threads_in_force(), _usable_cpus()
    try:
        in_force = configure_threads(n)
        if pin:
            _bind({cpus_by_core(allowed)[0]})
        yield in_force
    finally:
        _bind(allowed)
        if before is not None:
            configure_threads(before)


@contextmanager
def beside(n: int) -> Iterator[None]:
    """Keep the calling thread off the cores that :func:`use_threads` gives to ``n`` threads, where others are left."""
    allowed = _usable_cpus()
    others = cpus_by_core(allowed)[n:]
    try:
        if others:
            _bind(others)
        yield
    finally:
        _bind(allowed)


def _bind(cpus: Iterable[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
