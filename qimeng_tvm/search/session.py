"""What the strategy, builder and runner of one tuning run share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from qimeng_tvm.errors import QimengError
from qimeng_tvm.schedule.apply import NEAR, Task
from qimeng_tvm.schedule.contract import Values
from qimeng_tvm.search.choose import DEFAULT, Guide, chooser_for
from qimeng_tvm.search.cost import DecisionModel, RuleModel
from qimeng_tvm.search.features import block_row, told_of
from qimeng_tvm.search.proposer import Chooser, Point
from qimeng_tvm.search.records import Record, RecordDatabase, Status, rule_id, task_key

#: ``progress(trials done, trials in all, best GFLOP/s of the task at hand, seconds left)``.
Progress = Callable[[int, int, float, float], None]


PARENTS = 8


@dataclass(frozen=True)
class Trial:
    """A candidate on its way to be measured."""

    token: str
    task: TaskState
    values: Values
    schedule: Any
    key: str
    origin: str


@dataclass(frozen=True)
class Measurement:
    """What came of a trial."""

    status: Status
    seconds_min: float | None = None
    seconds_median: float | None = None
    gflops: float | None = None
    error: str = ""


@dataclass(eq=False)
class TaskState:
    """One task, and all that is known of it."""

    task: Task
    proposer: Chooser
    model: DecisionModel
    workload: str
    default: Mapping[str, Any]
    #: Whether the model is asked (for ablations: without it draws go by their weights alone).
    ranked: bool = True
    schedules: set[str] = field(default_factory=set)
    recorded: int = 0
    measured: int = 0
    failed: int = 0
    best: Record | None = None
    #: The fastest so far, whose neighbours are tried.
    parents: list[tuple[float, Values]] = field(default_factory=list)

    def learn(self, record: Record) -> None:
        """Take a record into account."""
        if record.schedule:
            self.schedules.add(record.schedule)
        if set(record.decisions) == set(self.default):
            self.proposer.learn(record.decisions, record.seconds_min if record.status == "ok" else None)
        if record.status == "ok" and record.seconds_min is not None:
            self.note_time(record.decisions, record.seconds_min)
            if self.best is None or self.best.seconds_min is None or record.seconds_min < self.best.seconds_min:
                self.best = record
        elif record.status != "schedule":
            self.failed += 1

    def note_time(self, values: Values, seconds: float) -> None:
        """Keep a point among the fastest if it is one of them."""
        self.parents = sorted([*self.parents, (seconds, values)], key=lambda p: p[0])[:PARENTS]

    def next_points(self, count: int) -> list[tuple[str, Point]]:
        """Return what is tried next, and by what it was chosen: the analytic decisions before all others, alone."""
        default = self.proposer.default()
        if default is not None:
            return [("default", default)]
        model = self.model
        score = model.score if self.ranked and (model.ready or model.prior is not None) else None
        origin = "model" if score is not None and model.ready else "prior" if score is not None else "sample"
        return [(origin, p) for p in self.proposer.propose(count, [values for _, values in self.parents], score)]

    def claim(self, values: Values, key: str) -> bool:
        """Take a schedule as this point's; False when other decisions have led to it before.

        Targets are rounded to what divides the shape: several may amount to the same.
        """
        if key in self.schedules:
            self.proposer.drop(values)
            return False
        self.schedules.add(key)
        return True

    @property
    def best_seconds(self) -> float:
        """Time of the best so far; 0 when there is none."""
        return (self.best.seconds_min or 0.0) if self.best is not None else 0.0

    @property
    def best_gflops(self) -> float:
        """Speed of the best so far; 0 when there is none."""
        return (self.best.gflops or 0.0) if self.best is not None else 0.0


class Session:
    """The state of one tuning run.

    Parameters
    ----------
    database : RecordDatabase
        Where every finished trial goes at once.
    tasks : sequence of TaskState
        What is tuned.
    total : int
        Trials in all, those of earlier runs included.
    done : int
        Trials of earlier runs that count.
    stamp : Record
        What all records have in common: versions, seed, strategy.
    """

    def __init__(
        self,
        database: RecordDatabase,
        tasks: Sequence[TaskState],
        *,
        total: int,
        done: int,
        stamp: Record,
        progress: Progress | None = None,
        deadline: float | None = None,
    ) -> None:
        self.database = database
        self.tasks = tuple(tasks)
        self.total = total
        self.done = done
        self.planned = done
        #: Trials that the next batch may have.
        self.allowance = total
        self.reason = ""
        #: What ended the run, if anything did.
        self.error: BaseException | None = None
        self.batch: list[Trial] = []
        self.trials: dict[str, Trial] = {}
        self._by_key: dict[str, Trial] = {}
        self._stamp = stamp
        self._progress = progress
        self._deadline = deadline
        self._start = time.monotonic()
        self._first_done = done

    def stop(self, reason: str) -> None:
        """Ask everyone to end after the trial in flight."""
        self.reason = self.reason or reason

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keep what is raised in a callback: MetaSchedule makes a RuntimeError of it."""
        try:
            yield
        except (QimengError, KeyboardInterrupt) as error:
            self.error = error
            raise

    @property
    def stopping(self) -> bool:
        """Whether to start nothing more."""
        if not self.reason and self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = "time is up"
        return bool(self.reason)

    @property
    def room(self) -> int:
        """Trials that may still be started."""
        return max(0, self.total - self.planned)

    def count(self, trials: int) -> None:
        """Take so many trials of earlier runs into account that did not count before."""
        self.done += trials
        self.planned += trials
        self._first_done += trials

    def add_batch(self, trials: Sequence[Trial]) -> None:
        """Take the candidates that builder and runner get next."""
        self.batch = list(trials)
        self.planned += len(trials)
        for trial in trials:
            self.trials[trial.token] = trial
            self._by_key[trial.key] = trial

    def find(self, key: str) -> tuple[DecisionModel, Values] | None:
        """Return model and decisions of a scheduled module of this run."""
        trial = self._by_key.get(key)
        return None if trial is None else (trial.task.model, trial.values)

    def refuse(self, state: TaskState, values: Values, reason: str) -> None:
        """Record decisions that the schedule refused: they are never tried again."""
        record = replace(self._of(state), decisions=values, status="schedule", error=reason)
        self.database.append(record)
        state.learn(record)

    def finish(
        self, trial: Trial, found: Measurement, intrins: tuple[str, ...], tvm_record: tuple[bytes, bytes] | None
    ) -> None:
        """Record a trial and tell how far we are."""
        record = replace(
            self._of(trial.task),
            decisions=trial.values,
            status=found.status,
            seconds_min=found.seconds_min,
            seconds_median=found.seconds_median,
            gflops=found.gflops,
            error=found.error,
            intrins=intrins,
            schedule=trial.key,
            strategy=f"{self._stamp.strategy}/{trial.origin}",
        )
        self.database.append(record, tvm_record=tvm_record)
        trial.task.learn(record)
        trial.task.measured += 1
        self.done += 1
        self.tell(trial.task)

    def tell(self, state: TaskState) -> None:
        """Call the progress callback."""
        if self._progress is not None:
            here = self.done - self._first_done
            each = (time.monotonic() - self._start) / here if here else 0.0
            left = each * (self.total - self.done)
            if self._deadline is not None:
                left = min(left, max(0.0, self._deadline - time.monotonic()))
            self._progress(self.done, self.total, state.best_gflops, left)

    def _of(self, state: TaskState) -> Record:
        task = state.task
        return replace(
            self._stamp,
            workload=state.workload,
            fingerprint=task.hardware.fingerprint,
            machine=task.hardware.name,
            rule=rule_id(task),
            threads=task.info.threads,
            operator=task.info.operator + ("" if task.weights == NEAR else f", weights from {task.weights}"),
            block=told_of(task.info),
        )


def new_state(
    task: Task,
    seed: int,
    records: Sequence[Record],
    strategy: str = DEFAULT,
    guide: Guide | None = None,
    *,
    shared: RuleModel | None = None,
) -> TaskState:
    """Return the state of a task with what earlier runs recorded of it.

    Parameters
    ----------
    task, seed, strategy, guide
        As of :func:`~qimeng_tvm.search.choose.chooser_for`.
    records : sequence of Record
        Of the task.
    shared : RuleModel, optional
        What is known of other operators of the rule.
    """
    prior = getattr(task.rule, "estimate", None)
    estimate = None if prior is None else lambda values: float(prior(values, task.info, task.hardware))
    workload = task_key(task)
    model = DecisionModel(
        task.space,
        estimate,
        seed,
        shared=shared,
        row=lambda values: block_row(values, task.info, task.hardware),
        name=workload,
    )
    state = TaskState(
        task,
        chooser_for(strategy, task, seed, guide),
        model,
        workload,
        task.space.defaults(),
        ranked=guide is None or "model" not in guide.without,
    )
    for record in records:
        state.learn(record)
        if record.status != "schedule":
            state.recorded += 1
            if set(record.decisions) == set(state.default):
                state.model.add(record.decisions, record.seconds_min)
    return state
