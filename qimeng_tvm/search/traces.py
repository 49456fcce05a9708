"""MetaSchedule's own record of a trial, as the lines that its JSON database holds."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvm import IRModule
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.intrin.registry import ensure_registered_in
from qimeng_tvm.search import journal
from qimeng_tvm.search.records import TRACES, WORKLOADS, RecordDatabase


class TraceWriter:
    """Turn trials into lines of ``database_workload.json`` and ``database_tuning_record.json``.

    TVM serialises, in a private folder; :class:`RecordDatabase` puts the lines into the shared files. TVM's own
    writer neither locks nor survives being killed, and numbers workloads by what it alone has seen.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="qimeng-traces-")
        #: The database that ``tune_tasks`` is given: it sees the records of this run.
        self.database = ms.database.JSONDatabase(work_dir=self._folder.name)

    def lines(self, mod: IRModule, trace: Any, seconds: Sequence[float], target: Any) -> tuple[bytes, bytes]:
        """Return the workload line, and the record without its workload's number."""
        folder = Path(self._folder.name)
        workload = self.database.commit_workload(mod)
        arguments = ms.arg_info.ArgInfo.from_entry_func(mod, False)
        record = ms.database.TuningRecord(trace, workload, [float(s) for s in seconds], target, arguments)
        before = _size(folder / TRACES)
        self.database.commit_tuning_record(record)
        with open(folder / TRACES, "rb") as stream:
            stream.seek(before)
            line = stream.read().strip()
        number, _, rest = line[1:-1].partition(b",")
        return (folder / WORKLOADS).read_bytes().splitlines()[int(number)], rest

    def close(self) -> None:
        """Remove the private folder."""
        self._folder.cleanup()


def open_database(folder: Path | str) -> Any:
    """Open the folder with TVM's own tools; the intrinsics that its traces name are registered first.

    Raises
    ------
    IntrinError
        If a trace names an intrinsic that this version does not have.
    """
    folder = Path(folder)
    RecordDatabase(folder).repair()
    ensure_registered_in(line.decode() for line in journal.read(folder / TRACES))
    return ms.database.JSONDatabase(work_dir=str(folder))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
