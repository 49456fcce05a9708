"""What surrounds a MetaSchedule run: its tasks, its log, and Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.errors import RecordError
from qimeng_tvm.hardware.target import target_of
from qimeng_tvm.schedule.apply import Task
from qimeng_tvm.search.records import task_key

if TYPE_CHECKING:
    from qimeng_tvm.search.session import Session

LOGGER = "tvm.s_tir.meta_schedule"


def plain_context(task: Task, strategy: Any, seed: int = 1, mutators: Mapping[Any, float] | None = None) -> Any:
    """Return MetaSchedule's view of a task that some strategy searches.

    Made without TuneContext.__init__, which imports every intrinsic that TVM ships: a minute or more, as each of them
    walks the stack through all loaded modules, and none of them is used here.
    """
    generator = ms.space_generator.ScheduleFn(
        lambda sch: [sch], sch_rules=[], postprocs=[], mutator_probs=dict(mutators or {})
    )
    context = ms.TuneContext.__new__(ms.TuneContext)
    context.__init_handle_by_constructor__(
        ms._ffi_api.TuneContext,
        tvm.IRModule({"main": task.func}),
        target_of(task.hardware, task.info.threads),
        generator,
        strategy,
        f"{task.info.name}-{task_key(task)}",
        1,
        seed,
        ms.logging.get_logging_func(logging.getLogger(LOGGER)),
    )
    ms._ffi_api.TuneContextInitialize(context)
    return context


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Send MetaSchedule's log to a file instead of the terminal."""
    logger = logging.getLogger(LOGGER)
    kept = (logger.handlers[:], logger.propagate, logger.level)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise RecordError(
            f"cannot write to the tuning database {path.parent} ({error.strerror or error}): choose another folder"
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s [%(levelname)s] %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        handler.close()
        logger.handlers, logger.propagate = kept[0], kept[1]
        logger.setLevel(kept[2])


@contextmanager
def interrupts(session: Session) -> Iterator[None]:
    """The first Ctrl-C ends the run after the trial in flight; a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return

    def handle(_number: int, _frame: Any) -> None:
        if session.reason:
            raise KeyboardInterrupt
        session.stop("interrupted")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
