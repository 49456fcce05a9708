"""MetaSchedule search strategy that chooses a rule's decisions and lets the rule make the schedule.

Mutating the sampling steps of a trace, as evolutionary search does, changes nothing downstream: a rule's tile sizes
and intrinsic names are constants by then. So every candidate is the rule run anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.errors import QimengError
from qimeng_tvm.schedule.apply import build_schedule
from qimeng_tvm.search.proposer import Point
from qimeng_tvm.search.records import schedule_key
from qimeng_tvm.search.session import Session, TaskState, Trial

#: Refusals in a row after which the rule, not the decisions, is taken to be at fault.
_PATIENCE = 64
#: TVM raises nearly anything for a step that it cannot take.
_REFUSALS = (QimengError, RuntimeError, ValueError, TypeError, LookupError, AssertionError)


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
            points = self._points(wanted - len(trials))
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

    def _points(self, count: int) -> list[tuple[str, Point]]:
        default = self.state.proposer.default()
        if default is not None:
            return [("default", default)]
        parents = [values for _, values in self.state.parents]
        model = self.state.model
        score = model.score if self.state.ranked and (model.ready or model.prior is not None) else None
        origin = "model" if score is not None and model.ready else "prior" if score is not None else "sample"
        return [(origin, p) for p in self.state.proposer.propose(count, parents, score)]

    def _build(self, origin: str, values: Point) -> Trial | None:
        state = self.state
        try:
            schedule = build_schedule(state.task, values)
        except _REFUSALS as error:
            self.session.refuse(state, values, last_line(error))
            return None
        key = schedule_key(schedule.mod)
        if key in state.schedules:
            # Other decisions that amount to a schedule we have (targets are rounded to what divides the shape).
            state.proposer.drop(values)
            return None
        state.schedules.add(key)
        return Trial(f"{state.workload}/{key}", state, values, schedule, key, origin)


def last_line(error: BaseException) -> str:
    """Return the last line of an error that says something: TVM's begin with a stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
