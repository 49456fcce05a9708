"""TVM's own evolutionary search over a rule's decisions.

A trace's sampling steps decide nothing downstream, since tile sizes and intrinsic names are constants by then. So the
decisions travel in the trace as an annotation of the root block; the mutator reads them there, changes one, and lets
the rule make the trace anew. Initial population, crossing of generations, selection and the greedy share are TVM's
(src/s_tir/meta_schedule/search_strategy/evolutionary_search.cc).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.hardware.target import target_of
from qimeng_tvm.schedule.apply import REFUSALS, Task, build_schedule
from qimeng_tvm.schedule.contract import Value, Values
from qimeng_tvm.schedule.steps import PREPACK
from qimeng_tvm.search.context import plain_context
from qimeng_tvm.search.proposer import Chooser, Key, Point, Score

#: Annotation of the root block that holds the decisions.
DECISIONS = "qimeng.decisions"
#: Traces that a generation has, random points that the first one is made of, and generations. TVM's defaults (512, 50,
#: 4) are for mutations in C++; here each runs the rule, some 40 ms.
POPULATION, DESIGNS, GENERATIONS = 24, 16, 2
_TRIES = 40
#: Batches in a row with nothing new in them before the search gives up.
_FRUITLESS = 4
_ENDLESS = 1 << 20


def annotated(task: Task, values: Values) -> Any:
    """Return the schedule of decisions, with them in its trace.

    Raises
    ------
    ScheduleError
        If they are not legal, or TVM refuses a step.
    """
    schedule = build_schedule(task, values)
    for step in list(schedule.trace.insts):
        if str(step.kind.name) == "Annotate" and str(step.attrs[0]) == PREPACK:
            # TVM's search takes such blocks out to see what a candidate's arguments are, and fails at those that pad.
            schedule.unannotate(step.inputs[0], PREPACK)
    schedule.annotate(schedule.get_sblock("root"), DECISIONS, json.dumps(dict(values)))
    return schedule


def decisions_in(trace: Any) -> dict[str, Value] | None:
    """Return the decisions that a trace was made with; None when it does not say."""
    for step in reversed(list(trace.insts)):
        if str(step.kind.name) == "Annotate" and str(step.attrs[0]) == DECISIONS:
            found: dict[str, Value] = json.loads(str(step.inputs[1]))
            return found
    return None


def random_points(task: Task, rng: random.Random, count: int) -> list[dict[str, Value]]:
    """Return the analytic decisions and random legal ones, none twice."""
    points = [task.space.defaults()]
    for _ in range(count * _TRIES):
        if len(points) == count:
            break
        point = {d.name: rng.choice(d.candidates) for d in task.space.decisions}
        if point not in points and task.space.illegal(point) is None:
            points.append(point)
    return points


@derived_object
class DecisionMutator(ms.mutator.PyMutator):  # type: ignore[misc]
    """Change one decision, and let the rule make the trace anew.

    Parameters
    ----------
    task : Task
        What is tuned.
    seed : int
        Of the choices.
    """

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__()
        self.task = task
        self.seed = seed
        self.rng = random.Random(seed)

    def _initialize_with_tune_context(self, context: Any) -> None:
        """Nothing to note."""

    def apply(self, trace: Any, _: int) -> Any:
        """Return the trace of a neighbour; None when there is none that the rule can make."""
        values = decisions_in(trace)
        free = [d for d in self.task.space.decisions if len(d.candidates) > 1]
        for _try in range(_TRIES if values is not None and free else 0):
            decision = self.rng.choice(free)
            point = {**(values or {}), decision.name: self.rng.choice(decision.candidates)}
            if point == values or self.task.space.illegal(point) is not None:
                continue
            try:
                return annotated(self.task, point).trace
            except REFUSALS:
                return None
        return None

    def clone(self) -> Any:
        """Return one that makes the same choices."""
        return DecisionMutator(self.task, self.seed)


@derived_object
class PointModel(ms.cost_model.PyCostModel):  # type: ignore[misc]
    """A score of decisions as MetaSchedule's cost model, asked by what is in the candidates' traces.

    Without a score all candidates are as good.
    """

    def __init__(self) -> None:
        super().__init__()
        self.score: Score | None = None

    def load(self, path: str) -> None:
        """Nothing to do: the tuning records are what is kept."""

    def save(self, path: str) -> None:
        """Nothing to do: the tuning records are what is kept."""

    def update(self, context: Any, candidates: Sequence[Any], results: Sequence[Any]) -> None:
        """Nothing to do: the task's model is told by the run."""

    def predict(self, context: Any, candidates: Sequence[Any]) -> npt.NDArray[np.float64]:
        """Return one number a candidate; 0 for those whose trace does not tell its decisions."""
        points = [decisions_in(c.sch.trace) for c in candidates]
        known = [p for p in points if p is not None]
        scores = iter(self.score(known) if self.score is not None and known else np.zeros(len(known)))
        return np.array([0.0 if p is None else float(next(scores)) for p in points], dtype=np.float64)


class Evolution(Chooser):
    """Choose decisions by TVM's evolutionary search.

    Parameters
    ----------
    task : Task
        What is tuned.
    seed : int
        Of TVM's search and of the mutations.
    """

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task.space, seed)
        self.task = task
        self._seed = seed
        self._search = ms.search_strategy.EvolutionarySearch(
            population_size=POPULATION, init_min_unmeasured=POPULATION // 2, genetic_num_iters=GENERATIONS
        )
        self._model = PointModel()
        #: What TVM is told of measured points: its generations start from the best of them.
        self._database = ms.database.MemoryDatabase()
        self._context: Any = None
        self._candidates: Any = None
        self._waiting: list[Point] = []
        self._seconds: dict[Key, float] = {}

    def propose(self, count: int, parents: Sequence[Values] = (), score: Score | None = None) -> list[Point]:
        """Return up to ``count`` new points; ``parents`` are not used, TVM keeps its own."""
        self._model.score = score
        if self._context is None:
            self._start(count)
        chosen: list[Point] = []
        for _ in range(_FRUITLESS):
            while self._waiting and len(chosen) < count:
                point = self._waiting.pop(0)
                if self._claim(point):
                    chosen.append(point)
            if len(chosen) == count or not self._generate():
                break
        return chosen

    def learn(self, values: Values, seconds: float | None) -> None:
        """Take a measurement into account; None: it failed."""
        super().learn(values, seconds)
        if seconds is None:
            return
        self._seconds[self.key(values)] = seconds
        schedule = self._made(values)
        if schedule is not None:
            task = self.task
            module = tvm.IRModule({"main": task.func})
            workload = self._database.commit_workload(module)
            target = target_of(task.hardware, task.info.threads)
            arguments = ms.arg_info.ArgInfo.from_entry_func(module, False)
            record = ms.database.TuningRecord(schedule.trace, workload, [seconds], target, arguments)
            self._database.commit_tuning_record(record)

    def _start(self, count: int) -> None:
        """Begin: the designs of the first generation are the analytic decisions and random points."""
        task = self.task
        mutators = {DecisionMutator(task, self._seed): 1.0}
        self._context = plain_context(task, self._search, self._seed + 1, mutators)
        designs = [s for p in random_points(task, self._rng, DESIGNS) if (s := self._made(p)) is not None]
        # How many trials there are is for the run to know.
        self._search.pre_tuning(_ENDLESS, count, designs, self._database, self._model)

    def _made(self, point: Values) -> Any:
        try:
            return annotated(self.task, point)
        except REFUSALS:
            return None

    def _generate(self) -> bool:
        """Tell TVM how its last batch did, and have it make another; False when there is none."""
        if self._candidates:
            self._search.notify_runner_results(self._candidates, [self._result(c) for c in self._candidates])
        self._candidates = self._search.generate_measure_candidates()
        points = [decisions_in(c.sch.trace) for c in self._candidates or ()]
        self._waiting = [p for p in points if p is not None]
        return bool(self._candidates)

    def _result(self, candidate: Any) -> Any:
        values = decisions_in(candidate.sch.trace)
        seconds = self._seconds.get(self.key(values)) if values is not None else None
        if seconds is None:
            return ms.runner.RunnerResult(None, "not measured")
        return ms.runner.RunnerResult([seconds], None)
