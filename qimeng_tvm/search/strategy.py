"""MetaSchedule search strategy that chooses a rule's decisions and lets the rule make the schedule.

Mutating the sampling steps of a trace, as evolutionary search does, changes nothing downstream: a rule's tile sizes
and intrinsic names are constants by then. So every candidate is the rule run anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.errors import last_line
from qimeng_tvm.schedule.apply import REFUSALS, build_schedule
from qimeng_tvm.search.proposer import Point
from qimeng_tvm.search.records import schedule_key
from qimeng_tvm.search.session import Session, TaskState, Trial

#: Refusals in a row after which the rule, not the decisions, is taken to be at fault.
_PATIENCE = 64


@derived_object
class DecisionSearch(ms.search_strategy.PySearchStrategy):  # type: ignore[misc]
    """Propose decisions: the analytic ones first, then what the task's chooser makes of what is known.

    Parameters
    ----------
    state : TaskState
        The task, what is known of it, and its proposer.
    session : Session
        Counts trials, takes batches and refusals.
    """

    def __init__(self, state: TaskState, session: Session) -> None:
        super().__init__()
        self.state = state
        self.session = session
        self.per_batch = 1
        self.arguments: Any = None

    def _initialize_with_tune_context(self, context: Any) -> None:
        self.arguments = ms.arg_info.ArgInfo.from_entry_func(context.mod, False)

    def pre_tuning(
        self,
        max_trials: int,
        num_trials_per_iter: int,
        design_spaces: Any,
        database: Any = None,
        cost_model: Any = None,
    ) -> None:
        """Note the batch size; everything else is in the session."""
        self.per_batch = num_trials_per_iter

    def post_tuning(self) -> None:
        """Nothing to do."""

    def generate_measure_candidates(self) -> list[Any] | None:
        """Return the next batch; None when trials, time or the space are used up."""
        with self.session.guard():
            trials = self.next_trials()
        if not trials:
            return None
        self.session.add_batch(trials)
        return [ms.search_strategy.MeasureCandidate(t.schedule, self.arguments) for t in trials]

    def notify_runner_results(self, measure_candidates: Sequence[Any], results: Sequence[Any]) -> None:
        """Nothing to do: the session has recorded every result already."""

    def clone(self) -> Any:
        """Return a strategy on the same state."""
        return DecisionSearch(self.state, self.session)

    def next_trials(self) -> list[Trial]:
        """Return up to a batch of candidates whose schedules exist."""
        wanted = min(self.per_batch, self.session.room, self.session.allowance)
        trials: list[Trial] = []
        refused = 0
        while len(trials) < wanted and not self.session.stopping:
            points = self.state.next_points(wanted - len(trials))
            if not points:
                break
            for origin, values in points:
                trial = self._build(origin, values)
                if trial is not None:
                    trials.append(trial)
                    refused = 0
                else:
                    refused += 1
            if refused >= _PATIENCE:
                break
        return trials

    def _build(self, origin: str, values: Point) -> Trial | None:
        state = self.state
        try:
            schedule = build_schedule(state.task, values)
        except REFUSALS as error:
            self.session.refuse(state, values, last_line(error))
            return None
        key = schedule_key(schedule.mod)
        if not state.claim(values, key):
            return None
        return Trial(f"{state.workload}/{key}", state, values, schedule, key, origin)
