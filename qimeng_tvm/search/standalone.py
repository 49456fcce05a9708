"""The strategies for MetaSchedule as it comes: ``ms.tune_tir(..., strategy=QimengSearch("mcts"))``.

MetaSchedule builds, runs and keeps the database; nothing of it is replaced. The design space that it makes is not used:
candidates are the rule's, for the decisions that the strategy chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.hardware import Hardware
from qimeng_tvm.schedule.apply import REFUSALS, build_schedule, make_task
from qimeng_tvm.schedule.contract import Values
from qimeng_tvm.search.choose import Guide
from qimeng_tvm.search.records import schedule_key
from qimeng_tvm.search.session import TaskState, new_state

#: Proposals in a row that amount to nothing new before the search ends.
_PATIENCE = 64


@derived_object
class QimengSearch(ms.search_strategy.PySearchStrategy):  # type: ignore[misc]
    """Choose a rule's decisions, as a search strategy for MetaSchedule's own tuning functions.

    Parameters
    ----------
    strategy : str
        A key of :data:`~qimeng_tvm.search.choose.STRATEGIES`.
    hardware : Hardware, optional
        The machine that candidates run on; this one by default.
    seed : int
        Of the search.
    guide : Guide, optional
        For ``mcts``.

    Raises
    ------
    ScheduleError
        When tuning starts, if no rule serves the function.
    """

    def __init__(
        self, strategy: str = "mcts", hardware: Hardware | None = None, seed: int = 0, guide: Guide | None = None
    ) -> None:
        super().__init__()
        self.strategy = strategy
        self.hardware = hardware
        self.seed = seed
        self.guide = guide
        self.state: TaskState | None = None
        self.left, self.per_batch = 0, 1
        self.batch: list[Values] = []
        self.arguments: Any = None

    def _initialize_with_tune_context(self, context: Any) -> None:
        func = context.mod["main"]
        threads = int(context.target.attrs.get("num-cores", 1))
        machine = self.hardware or Hardware.host()
        task = make_task(func, machine, threads)
        if task is None:
            raise ScheduleError(
                f"no rule serves {context.task_name or 'the function'} on {machine.name}: "
                "tune it by a strategy of MetaSchedule's own"
            )
        self.state = new_state(task, self.seed, [], self.strategy, self.guide)
        self.arguments = ms.arg_info.ArgInfo.from_entry_func(context.mod, False)

    def pre_tuning(
        self,
        max_trials: int,
        num_trials_per_iter: int,
        design_spaces: Any,
        database: Any = None,
        cost_model: Any = None,
    ) -> None:
        """Note how many trials there are; the design spaces, and MetaSchedule's cost model, are not used."""
        self.left, self.per_batch = max_trials, num_trials_per_iter

    def post_tuning(self) -> None:
        """Nothing to do."""

    def generate_measure_candidates(self) -> list[Any] | None:
        """Return the next batch; None when the trials or the space are used up."""
        assert self.state is not None
        schedules: list[Any] = []
        self.batch = []
        wanted, fruitless = min(self.per_batch, self.left), 0
        while len(schedules) < wanted and fruitless < _PATIENCE:
            points = self.state.next_points(wanted - len(schedules))
            if not points:
                break
            for _, values in points:
                schedule = self._made(self.state, values)
                if schedule is None:
                    fruitless += 1
                else:
                    schedules.append(schedule)
                    self.batch.append(values)
        self.left -= len(schedules)
        return [ms.search_strategy.MeasureCandidate(s, self.arguments) for s in schedules] or None

    def notify_runner_results(self, measure_candidates: Sequence[Any], results: Sequence[Any]) -> None:
        """Learn from what was measured."""
        assert self.state is not None
        for values, result in zip(self.batch, results, strict=True):
            seconds = min(float(s) for s in result.run_secs) if result.run_secs else None
            self.state.proposer.learn(values, seconds)
            self.state.model.add(values, seconds)
            if seconds is not None:
                self.state.note_time(values, seconds)

    def clone(self) -> Any:
        """Return a strategy with the same settings, from the beginning."""
        return QimengSearch(self.strategy, self.hardware, self.seed, self.guide)

    @staticmethod
    def _made(state: TaskState, values: Values) -> Any:
        try:
            schedule = build_schedule(state.task, values)
        except REFUSALS:
            state.proposer.learn(values, None)
            return None
        return schedule if state.claim(values, schedule_key(schedule.mod)) else None
