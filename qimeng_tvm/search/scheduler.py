"""MetaSchedule's task scheduler over our sharing of trials."""

from __future__ import annotations

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.search.session import Session
from qimeng_tvm.search.sharing import Sharing

_END = -1


@derived_object
class ShareScheduler(ms.task_scheduler.PyTaskScheduler):  # type: ignore[misc]
    """Choose the task that is tuned next, and how many trials it gets.

    Parameters
    ----------
    sharing : Sharing
        Decides; its shares are the session's tasks, in order.
    session : Session
        What is known of them.
    """

    def __init__(self, sharing: Sharing, session: Session) -> None:
        super().__init__()
        self.sharing = sharing
        self.session = session
        self._last = _END
        self._planned = 0

    def next_task_id(self) -> int:
        """Return the task that is tuned next; -1 when there is none."""
        with self.session.guard():
            if self._last != _END:
                self._take_up()
            found = None if self.session.stopping else self.sharing.next()
            self._last, self.session.allowance = found or (_END, 0)
            self._planned = self.session.planned
            return self._last

    def _take_up(self) -> None:
        """Take the results of the last batch into account."""
        share, state = self.sharing.shares[self._last], self.session.tasks[self._last]
        before = self.sharing.counted
        if self.session.planned > self._planned:
            # The cost model learns here.
            self.join_running_task(self._last)
        elif not self.session.stopping:
            share.exhausted = True
            self.session.count(self.sharing.counted - before)
        share.update(state.measured, state.best_seconds)
