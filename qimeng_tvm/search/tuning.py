"""``tune``: measure candidates of a rule's space through MetaSchedule, and resume where it was stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import tvm
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.errors import QimengError, SearchError
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.hardware.host import host
from qimeng_tvm.hardware.model import peak_dtype
from qimeng_tvm.schedule.apply import Task
from qimeng_tvm.schedule.contract import Value
from qimeng_tvm.search.choose import DEFAULT, Guide
from qimeng_tvm.search.context import LOGGER, interrupts, log_to, plain_context
from qimeng_tvm.search.cost import TaskModels
from qimeng_tvm.search.finalists import time_finalists
from qimeng_tvm.search.knowledge import rule_models
from qimeng_tvm.search.lab import open_lab
from qimeng_tvm.search.measure import LabRunner, Limits, TokenBuilder
from qimeng_tvm.search.records import Record, RecordDatabase, rule_id, task_key
from qimeng_tvm.search.scheduler import ShareScheduler
from qimeng_tvm.search.session import Progress, Session, TaskState, new_state
from qimeng_tvm.search.sharing import Share, Sharing
from qimeng_tvm.search.strategy import DecisionSearch
from qimeng_tvm.search.traces import TraceWriter
from qimeng_tvm.search.tracker import Rpc

#: Trials between two looks at the cost model (and the scheduler's choice of a task).
PER_BATCH = 8
LOG = "tune.log"
_LOG = logging.getLogger(f"{LOGGER}.qimeng")


@dataclass(frozen=True)
class TaskResult:
    """What tuning found for one task.

    Attributes
    ----------
    task : Task
        What was tuned.
    values : Mapping[str, int or str]
        The fastest decisions measured; the analytic ones when nothing was.
    record : Record or None
        Where they come from.
    trials : int
        Measured trials recorded for the task, those of earlier runs included.
    measured, failed : int
        Trials of this run; recorded trials (of any run) that gave no time.
    """

    task: Task
    values: Mapping[str, Value]
    record: Record | None
    trials: int
    measured: int
    failed: int

    @property
    def gflops(self) -> float:
        """Speed of the best; 0 when nothing was measured."""
        return (self.record.gflops or 0.0) if self.record is not None else 0.0


@dataclass(frozen=True)
class TuneResult:
    """What :func:`tune` found.

    Attributes
    ----------
    results : tuple of TaskResult
        One a task, in the order given.
    seconds : float
        Wall time of this run.
    stopped : str
        Why it ended early; empty when it did not.
    resume : str
        What to do to go on; empty when there is nothing to do.
    """

    results: tuple[TaskResult, ...]
    seconds: float
    stopped: str = ""
    resume: str = ""

    @property
    def values(self) -> Mapping[str, Value]:
        """Decisions of the first task."""
        return self.results[0].values

    @property
    def record(self) -> Record | None:
        """Record of the first task."""
        return self.results[0].record

    @property
    def trials(self) -> int:
        """Measured trials behind the results, those of earlier runs included."""
        return sum(r.trials for r in self.results)

    @property
    def measured(self) -> int:
        """Trials of this run."""
        return sum(r.measured for r in self.results)


def tune(
    tasks: Task | Sequence[Task],
    trials: int,
    database_dir: str | Path,
    hardware: Hardware | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    time_limit: float | None = None,
    *,
    weights: Sequence[float] | None = None,
    limits: Limits | None = None,
    strategy: str = DEFAULT,
    guides: Sequence[Guide | None] | None = None,
    rpc: Rpc | None = None,
) -> TuneResult:
    """Measure decisions of the tasks' rules, and return the fastest of each.

    Trials that the database already holds for a task (same machine, same versions) count, so the same call goes on
    where an earlier one was stopped or killed.

    Parameters
    ----------
    tasks : Task or sequence of Task
        What to tune, all on this machine.
    trials : int
        Trials in all, over all tasks; 0 measures nothing and returns the analytic decisions. The analytic decisions
        of every task are measured first, also where there are more tasks than trials; the others go where they
        promise to save most time.
    database_dir : path
        Folder of the tuning records.
    hardware : Hardware, optional
        The machine with its measured peaks (a time above the peak is rejected); the tasks' by default.
    threads : int, optional
        Must be the tasks' own when given.
    seed : int
        Of the search.
    progress : callable, optional
        ``progress(done, total, best GFLOP/s, seconds left)`` after every trial; a :class:`TuneBar` is one.
    time_limit : float, optional
        Start no trial after so many seconds.
    weights : sequence of float, optional
        How often each task runs, for the choice of what to tune next.
    limits : Limits, optional
        Timeouts of one candidate.
    strategy : str
        A key of :data:`~qimeng_tvm.search.choose.STRATEGIES`.
    guides : sequence of Guide or None, optional
        Of each task, for ``mcts``: where its weights come from, who is asked on the way, what it does without.
    rpc : Rpc, optional
        Measure on machines behind this TVM RPC tracker instead of here. They must be what the tasks' hardware says:
        the records carry its fingerprint.

    Raises
    ------
    SearchError
        If the tasks are not for this machine, no server of the tracker is left, or MetaSchedule fails.
    BuildError
        If no linker for the machines behind the tracker is installed.
    RecordError
        If the database is damaged, of another version, locked or cannot be written.
    """
    listed = [tasks] if isinstance(tasks, Task) else list(tasks)
    machine = _machine(listed, hardware, threads, trials, here=rpc is None)
    start = time.monotonic()
    if trials == 0:
        untouched = tuple(TaskResult(t, t.space.defaults(), None, 0, 0, 0) for t in listed)
        return TuneResult(untouched, time.monotonic() - start)
    folder = Path(database_dir)
    database = RecordDatabase(folder)
    database.repair()
    # Operators that occur several times are tuned once, with the sum of their weights.
    keys = [task_key(t) for t in listed]
    shares: dict[str, float] = {}
    for key, weight in zip(keys, weights or [1.0] * len(listed), strict=True):
        shares[key] = shares.get(key, 0.0) + weight
    given = guides or [None] * len(listed)
    models = rule_models(listed, database, seed)
    states = {}
    for i, key in enumerate(shares):
        at = keys.index(key)
        task, shared = listed[at], models[rule_id(listed[at])]
        states[key] = new_state(task, seed + i, database.of_task(task), strategy, given[at], shared=shared)
    sharing = _sharing(list(states.values()), list(shares.values()), machine, trials)
    session = Session(
        database,
        list(states.values()),
        total=sharing.total,
        done=min(sharing.total, sharing.counted),
        stamp=_stamp(seed, strategy),
        progress=progress,
        deadline=None if time_limit is None else start + time_limit,
    )
    if session.room:
        _search(session, machine, sharing, limits or Limits(), rpc)
    results = {key: _result(state, database) for key, state in states.items()}
    # Time may be up, too, while the finalists are timed again: nothing is left to do then.
    stopped = session.reason if session.done < session.total else ""
    resume = ""
    if stopped:
        resume = f"{session.done} of {session.total} trials are in {folder}; the same command goes on from there"
    return TuneResult(tuple(results[k] for k in keys), time.monotonic() - start, stopped, resume)


def _machine(
    tasks: Sequence[Task], hardware: Hardware | None, threads: int | None, trials: int, *, here: bool
) -> Hardware:
    if not tasks:
        raise SearchError("nothing to tune: no task was given")
    if trials < 0:
        raise SearchError(f"{trials} trials asked for; 0 or more are needed")
    machine = hardware or tasks[0].hardware
    for task in tasks:
        if task.hardware.fingerprint != machine.fingerprint:
            raise SearchError(
                f"task {task.info.name!r} is for {task.hardware.name}, not for {machine.name}: tune it there"
            )
        if threads is not None and task.info.threads != threads:
            raise SearchError(
                f"task {task.info.name!r} is for {task.info.threads} threads, not {threads}: make it anew"
            )
    if here and trials and machine.fingerprint != host().fingerprint:
        raise SearchError(
            f"{machine.name} is not this machine, and candidates are measured here: use Hardware.host(), or measure "
            "where it is by rpc="
        )
    return machine


def _stamp(seed: int, strategy: str) -> Record:
    try:
        version = metadata.version("qimeng-tvm")
    except metadata.PackageNotFoundError:
        version = "0"
    return Record("", "", "", {}, seed=seed, strategy=strategy, tvm=str(tvm.__version__), qimeng=version)


def _result(state: TaskState, database: RecordDatabase) -> TaskResult:
    record = database.best(state.task, verified_only=False)
    values = dict(state.default if record is None else record.decisions)
    return TaskResult(state.task, values, record, state.recorded + state.measured, state.measured, state.failed)


def _sharing(states: Sequence[TaskState], weights: Sequence[float], machine: Hardware, trials: int) -> Sharing:
    shares = []
    for state, weight in zip(states, weights, strict=True):
        info = state.task.info
        peak = 1e9 * machine.peak(peak_dtype(info.a_dtype), info.threads)
        share = Share(weight, float(info.flops), peak, recorded=state.recorded)
        share.update(0, state.best_seconds)
        shares.append(share)
    return Sharing(shares, trials, PER_BATCH)


def _search(session: Session, machine: Hardware, sharing: Sharing, limits: Limits, rpc: Rpc | None) -> None:
    states, folder = session.tasks, session.database.folder
    traces = TraceWriter()
    try:
        with log_to(folder / LOG), interrupts(session), open_lab(session, limits, machine, rpc, session.room) as lab:
            sharing.least = len(lab.lanes)
            if session.total > sharing.trials:
                _LOG.info("%d trials asked for, %d made: every task gets one", sharing.trials, session.total)
            session.tell(states[0])
            ms.tune_tasks(
                tasks=[plain_context(state.task, DecisionSearch(state, session)) for state in states],
                task_weights=[share.weight for share in sharing.shares],
                work_dir=str(folder),
                max_trials_global=session.room,
                num_trials_per_iter=PER_BATCH,
                builder=TokenBuilder(session),
                runner=LabRunner(lab, session, traces),
                database=traces.database,
                cost_model=TaskModels(session.find),
                measure_callbacks=[ms.measure_callback.UpdateCostModel()],
                task_scheduler=ShareScheduler(sharing, session),
            )
            for state in states:
                time_finalists(state, lab, session)
    except QimengError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        if session.error is not None:
            raise session.error from None
        raise SearchError(
            f"MetaSchedule failed after {session.done} trials ({str(error).strip().splitlines()[-1][:200]}): "
            f"see {folder / LOG}; what was measured is kept"
        ) from error
    finally:
        traces.close()
