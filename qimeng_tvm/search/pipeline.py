"""Build the next candidates while one is measured: lanes that take jobs from one line. No TVM here."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

J = TypeVar("J")
J_contra = TypeVar("J_contra", contravariant=True)
M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)


class Lane(Protocol[J_contra, M_co]):
    """What builds and measures jobs, one at a time, in a thread of its own."""

    def build(self, job: J_contra) -> M_co | None:
        """Build a job; None when that went well, else what to record."""

    def measure(self, job: J_contra) -> M_co | None:
        """Measure what was built; None when it was not to be measured any more."""

    def abort(self) -> None:
        """End a call under way, from another thread."""


class _Line(Generic[J, M]):
    """The jobs, who is next, and what came of them."""

    def __init__(self, jobs: Sequence[J], stopping: Callable[[], bool], in_turn: bool) -> None:
        self.jobs = jobs
        self.results: queue.SimpleQueue[tuple[int, M] | BaseException | None] = queue.SimpleQueue()
        self._recorded = [threading.Event() for _ in jobs]
        self._stopping = stopping
        self._in_turn = in_turn
        self._abandoned = False
        self._taken = 0
        self._turn = 0
        self._moved = threading.Condition()

    def drive(self, lane: Lane[J, M]) -> None:
        """Take jobs until there are none; the last result is None."""
        try:
            while (index := self._take()) is not None:
                self._one(lane, index)
        except BaseException as error:  # whatever it is, the caller's thread is where it belongs
            self.results.put(error)
        finally:
            self.results.put(None)

    def _one(self, lane: Lane[J, M], index: int) -> None:
        job = self.jobs[index]
        found = lane.build(job)
        with self._my_turn(index):
            if found is None and not self._over:
                found = lane.measure(job)
            if found is not None and not self._abandoned:
                self.results.put((index, found))
                self._recorded[index].wait()

    @property
    def _over(self) -> bool:
        return self._abandoned or self._stopping()

    def _take(self) -> int | None:
        with self._moved:
            if self._taken >= len(self.jobs) or self._over:
                return None
            self._taken += 1
            return self._taken - 1

    @contextmanager
    def _my_turn(self, index: int) -> Iterator[None]:
        if not self._in_turn:
            yield
            return
        with self._moved:
            self._moved.wait_for(lambda: self._turn == index or self._abandoned)
        try:
            yield
        finally:
            with self._moved:
                self._turn += 1
                self._moved.notify_all()

    def recorded(self, index: int) -> None:
        """Let the lane whose result it was go on."""
        self._recorded[index].set()

    def abandon(self) -> None:
        """Have every lane end as soon as it can."""
        with self._moved:
            self._abandoned = True
            self._moved.notify_all()
        for event in self._recorded:
            event.set()


def run_lanes(
    lanes: Sequence[Lane[J, M]],
    jobs: Sequence[J],
    finish: Callable[[J, M], None],
    stopping: Callable[[], bool] = lambda: False,
    *,
    in_turn: bool,
) -> list[M | None]:
    """Build and measure jobs on several lanes; return the results in the order of the jobs.

    Parameters
    ----------
    lanes : sequence of Lane
        Each works in a thread of its own, and has one job at a time.
    jobs : sequence
        What to do; the lanes take them in this order.
    finish : callable
        Called with every job and its result, in the caller's thread, before the lane of that job goes on.
    stopping : callable
        Whether to start, and to measure, nothing more.
    in_turn : bool
        Measure one at a time and in order: a job is measured when the result of the one before is recorded. Jobs are
        built meanwhile all the same.

    Returns
    -------
    list
        None for what was not measured.

    Raises
    ------
    BaseException
        What a lane or ``finish`` raised; calls under way are ended first.
    """
    line = _Line[J, M](jobs, stopping, in_turn)
    threads = [threading.Thread(target=line.drive, args=(lane,), daemon=True) for lane in lanes]
    found: list[M | None] = [None] * len(jobs)
    try:
        for thread in threads:
            thread.start()
        left = len(threads)
        while left:
            result = line.results.get()
            if result is None:
                left -= 1
            elif isinstance(result, BaseException):
                raise result
            else:
                index, found[index] = result
                finish(jobs[index], result[1])
                line.recorded(index)
    except BaseException:
        line.abandon()
        for lane in lanes:
            lane.abort()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    return found
