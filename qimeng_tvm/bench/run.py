"""The benchmark itself: systems x cases x threads, interleaved, resumable."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from qimeng_tvm.bench import data, timing
from qimeng_tvm.bench.ceiling import NAME as CEILING
from qimeng_tvm.bench.ceiling import Ceiling
from qimeng_tvm.bench.host import Host, Opened, first_line, host_for
from qimeng_tvm.bench.result import BenchResult, Row
from qimeng_tvm.bench.suite import Case
from qimeng_tvm.bench.systems import BenchError, Refusal, System
from qimeng_tvm.errors import UsageError
from qimeng_tvm.files import write_atomic
from qimeng_tvm.hardware.model import Hardware

#: ``progress(groups done, groups in all, rows of the group just done)``.
Progress = Callable[[int, int, Sequence[Row]], None]


class Timed(Protocol):
    """A case of any benchmark."""

    @property
    def name(self) -> str:
        """Name in tables and JSON."""
        ...

    @property
    def dtype(self) -> str:
        """Name of its data types in tables and JSON."""
        ...

    @property
    def flops(self) -> int:
        """Operations of a call."""
        ...

    @property
    def saving(self) -> float:
        """How many times fewer operations a system may get by with: convolutions have methods that do."""
        ...

    def request(self, threads: int = 1) -> Any:
        """Return what the systems are told; ``a_dtype`` is the data type of the operands, as TVM calls it."""
        ...


#: Makes the folder that systems read a case's operands and right answer from.
Place = Callable[[Any], AbstractContextManager[Path]]

_PACKAGES = ("qimeng-tvm", "apache-tvm", "apache-tvm-ffi", "numpy", "torch", "blis", "onnxruntime", "threadpoolctl",
             "transformers", "onnx", "openvino", "iree-base-compiler", "iree-base-runtime")  # fmt: skip


def versions() -> dict[str, str]:
    """Releases of everything that is timed, where installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine_facts(hardware: Hardware | None = None) -> dict[str, Any]:
    """Return what the JSON says about the machine."""
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cores_allowed": len(timing.allowed_cores()),
    }
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        models = [s.split(":", 1)[1].strip() for s in listing.read_text().splitlines() if s.startswith("model name")]
        facts["cpu_model"] = models[0] if models else ""
    if hardware is not None:
        facts |= {
            "name": hardware.name,
            "cpu": hardware.cpu,
            "cores": hardware.cores,
            "features": sorted(hardware.features),
            "caches": {f"L{c.level}": c.size for c in hardware.caches},
            "peaks": dict(hardware.peaks),
            "peaks_all": dict(hardware.peaks_all),
            "fingerprint": hardware.fingerprint,
        }
    return facts


class _Partial:
    """Rows of the groups done so far, one group a line; a line torn by a kill is dropped."""

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self._path = path
        self.rows: dict[tuple[str, str, int], list[Row]] = {}
        if path is None:
            return
        whole: list[dict[str, Any]] = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    whole.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        if whole and whole[0] != header:
            changed = [k for k in header if whole[0].get(k) != header[k]]
            raise UsageError(f"{path} is of a run with other {', '.join(changed)}; remove it, or name another file")
        for entry in whole[1:]:
            rows = [Row.from_json(r) for r in entry["rows"]]
            self.rows[rows[0].group] = rows
        # Rewritten whole once, so that what follows is not appended to a torn line.
        write_atomic(path, "".join(json.dumps(e) + "\n" for e in (whole or [header])))

    def add(self, rows: Sequence[Row]) -> None:
        self.rows[rows[0].group] = list(rows)
        if self._path is not None:
            with self._path.open("a") as stream:
                stream.write(json.dumps({"rows": [r.to_json() for r in rows]}) + "\n")
                stream.flush()
                os.fsync(stream.fileno())


def bench_gemm(
    systems: Sequence[System],
    cases: Sequence[Case],
    threads: Sequence[int] = (1,),
    quick: bool = False,
    progress: Progress | None = None,
    *,
    hardware: Hardware | None = None,
    partial: Path | None = None,
    ours: str = "qimeng",
    plan: timing.TimingPlan | None = None,
) -> BenchResult:
    """Time every system on every case at every thread count.

    Parameters
    ----------
    systems : sequence of System
        Ours and the peers; one that is not available gets no rows and is named under ``versions["unavailable"]``.
    cases : sequence of Case
        From :func:`qimeng_tvm.bench.suite.gemm_suite`.
    threads : sequence of int
        Thread counts; the processes are pinned to that many cores, the
        last ones, since interrupts and other work tend to the first.
    quick : bool
        Fewer repeats (:data:`qimeng_tvm.bench.timing.QUICK`).
    progress : callable, optional
        Called after every (case, threads).
    hardware : Hardware, optional
        For the share of peak: its register-only loop is timed in turns with the systems.
    partial : Path, optional
        JSON-lines file that a killed run continues from.
    ours : str
        The system that the summary compares with the others.
    plan : TimingPlan, optional
        Overrides what ``quick`` says.
    """
    return bench_cases(
        systems, cases, _product, threads, plan or (timing.QUICK if quick else timing.FULL), progress,
        hardware=hardware, partial=partial, ours=ours,
    )  # fmt: skip


@contextmanager
def _product(case: Case) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qimeng-bench-") as folder:
        inputs = data.make_inputs(case.request())
        data.save(Path(folder), inputs, data.reference(inputs))
        yield Path(folder)


def bench_cases(
    systems: Sequence[System],
    cases: Sequence[Timed],
    place: Place,
    threads: Sequence[int],
    plan: timing.TimingPlan,
    progress: Progress | None = None,
    *,
    hardware: Hardware | None = None,
    partial: Path | None = None,
    ours: str = "qimeng",
) -> BenchResult:
    """Time every system on every case at every thread count; parameters are as of :func:`bench_gemm`.

    ``place`` makes the folder that the systems read a case from.
    """
    cores = timing.allowed_cores()
    for count in threads:
        if not 1 <= count <= len(cores):
            raise UsageError(f"{count} threads asked for, but this process may use 1 to {len(cores)} cores")
    names = [CEILING, *(s.name for s in systems)]
    if len(set(names)) != len(names):
        raise UsageError(f"two systems have the same name: {', '.join(sorted(names))}")
    reasons = {s.name: s.available() for s in systems}
    present = [s for s in systems if reasons[s.name] is None]
    about = machine_facts(hardware)
    used = versions()
    stable = {
        k: v for k, v in about.items() if k not in {"date", "peaks", "peaks_all"}
    }  # a run that goes on has others
    done = _Partial(partial, {"machine": stable, "versions": used, "systems": [s.name for s in present],
                              "plan": vars(plan)})  # fmt: skip
    hosts = {s.name: host_for(s) for s in present}
    ceiling = Ceiling(hardware)
    total, finished = len(cases) * len(threads), 0
    try:
        for case in cases:
            todo = [n for n in threads if (case.name, case.dtype, n) not in done.rows]
            finished += len(threads) - len(todo)
            if not todo:
                continue
            with place(case) as folder:
                for count in todo:
                    rows = _group(hosts, case, cores[-count:], folder, plan, ceiling)
                    if rows:
                        done.add(rows)
                    finished += 1
                    if progress is not None:
                        progress(finished, total, rows)
    finally:
        for host in hosts.values():
            host.shutdown()
        timing.pin(cores)
    wanted = [(c.name, c.dtype, n) for c in cases for n in threads]
    ordered = tuple(row for key in wanted for row in done.rows.get(key, ()))
    absent = {name: reason for name, reason in reasons.items() if reason is not None}
    return BenchResult(about, {**used, **({"unavailable": absent} if absent else {})}, ordered, ours)


def _group(
    hosts: dict[str, Host],
    case: Timed,
    cores: Sequence[int],
    folder: Path,
    plan: timing.TimingPlan,
    ceiling: Ceiling,
) -> list[Row]:
    """Time all systems on one case, in turns."""
    threads = len(cores)
    ready: dict[str, Opened] = {}
    failed: dict[str, dict[str, Any]] = {}
    for name, host in hosts.items():
        try:
            opened = host.open(case.request(threads), folder, threads, cores)
        except Exception as error:  # whatever a system does wrong is a row, not a crash
            failed[name] = {"error": True, "note": _reason(error)}
            continue
        if isinstance(opened, Refusal):
            failed[name] = {"refused": True, "note": opened.reason}
        else:
            ready[name] = opened
    a_dtype = case.request().a_dtype
    samplers = {name: hosts[name].sample for name in ready}
    loops = ceiling.samplers(a_dtype, threads) if ready else {}
    floors = ceiling.floors(a_dtype, threads) if loops else {}
    samples, attempts = timing.interleave_calmly(samplers | loops, plan, yardsticks=loops, floors=floors)
    peak = ceiling.gflops(samples.get(CEILING), a_dtype, threads)
    rows = []
    for name, host in hosts.items():
        sample = samples.get(name)
        if isinstance(sample, Exception):
            failed[name] = {"error": True, "note": _reason(sample)}
        if isinstance(sample, timing.Sample):
            blank = Row(case.name, case.dtype, threads, name, extra={"attempts": attempts})
            rows.append(_row(blank, case, sample, ready[name], plan, peak))
        else:
            rows.append(Row(case.name, case.dtype, threads, name, extra=failed[name]))
        try:
            host.close_case()
        except BenchError:  # its process is gone, which its row says already; the next case starts another
            host.shutdown()
    return rows


def _row(blank: Row, case: Timed, sample: timing.Sample, opened: Opened, plan: timing.TimingPlan, peak: float) -> Row:
    notes = [opened.note] if opened.note else []
    if sample.repeats < plan.repeats:
        notes.append(f"{sample.repeats} repeats instead of {plan.repeats}: slow")
    if opened.wrong:
        notes.append("wrong answer")
    extra: dict[str, Any] = {
        **blank.extra,
        **opened.extra,
        "repeats": sample.repeats,
        "inner": sample.inner,
        "out_dtype": opened.out_dtype,
        "error_vs_tolerance": min(opened.error, 1e30),  # JSON has no infinity
    }
    if peak:
        extra["peak_gflops"] = peak
    if case.saving > 1:
        extra["saving"] = case.saving
    if opened.label:
        extra["variant"] = opened.label
    if opened.wrong:
        extra["wrong"] = True
    if notes:
        extra["note"] = "; ".join(notes)
    return dataclasses.replace(
        blank,
        seconds_min=sample.seconds_min,
        seconds_median=sample.seconds_median,
        gflops=case.flops / sample.seconds_median / 1e9,
        spread=sample.spread,
        extra=extra,
    )


def _reason(error: Exception) -> str:
    return first_line(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {first_line(error)}"
