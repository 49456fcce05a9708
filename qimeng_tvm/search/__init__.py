"""Tuning: strategy, cost model, builder and runner, database, ``tune``.

Names are imported at first use: the measuring process needs none of them, and XGBoost and MetaSchedule take seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qimeng_tvm.search.measure import Limits
    from qimeng_tvm.search.progress import TuneBar
    from qimeng_tvm.search.records import Record, RecordDatabase, workload_key
    from qimeng_tvm.search.session import Progress
    from qimeng_tvm.search.tracker import Rpc
    from qimeng_tvm.search.tuning import TaskResult, TuneResult, tune

__all__ = [
    "Limits",
    "Progress",
    "Record",
    "RecordDatabase",
    "Rpc",
    "TaskResult",
    "TuneBar",
    "TuneResult",
    "tune",
    "workload_key",
]

_HOMES = {
    "Limits": "measure",
    "Progress": "session",
    "Record": "records",
    "RecordDatabase": "records",
    "Rpc": "tracker",
    "TaskResult": "tuning",
    "TuneBar": "progress",
    "TuneResult": "tuning",
    "tune": "tuning",
    "workload_key": "records",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
