"""Measuring candidates on persistent, confined workers, and MetaSchedule's builder and runner on top of that."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.check.timing import sanity
from qimeng_tvm.check.worker import Outcome, Worker
from qimeng_tvm.hardware.model import Hardware, peak_dtype
from qimeng_tvm.hardware.target import target_dict, target_of
from qimeng_tvm.schedule.apply import L3, MEMORY, Task
from qimeng_tvm.search.candidate import Probe, Timing, probe_of
from qimeng_tvm.search.pipeline import Lane, run_lanes
from qimeng_tvm.search.session import Measurement, Session, Trial
from qimeng_tvm.search.traces import TraceWriter

WORKER_MODULE = "qimeng_tvm.search.candidate"
#: How far above the measured peak a time may lie: what clocks and the peak's own spread do.
PEAK_MARGIN = 0.08
_STOPPED = "stopped"
_LOG = logging.getLogger("tvm.s_tir.meta_schedule.qimeng")


@dataclass(frozen=True)
class Limits:
    """Seconds that a candidate may take.

    Attributes
    ----------
    build, run : float
        Compiling it; checking and timing it.
    """

    build: float = 30.0
    run: float = 30.0


@dataclass(frozen=True)
class Job:
    """A trial as plain data: TVM's objects are for the thread that owns them.

    Attributes
    ----------
    trial : Trial
        Whose schedule only the thread that made the job touches.
    module : str
        ``save_json`` of the scheduled module.
    probe : Probe
        What goes in and what must come out.
    target : mapping
        What it is compiled for.
    """

    trial: Trial
    module: str
    probe: Probe
    target: Mapping[str, Any]

    @property
    def threads(self) -> int:
        """Cores to run on."""
        return self.trial.task.task.info.threads

    @property
    def best(self) -> float:
        """Seconds of the task's best candidate at this moment; 0 when there is none."""
        return self.trial.task.best_seconds


def job_of(trial: Trial) -> Job:
    """Prepare a trial for being built and measured."""
    task = trial.task.task
    probe = probe_of(trial.task.workload, task.func, task.info.k, evicting(task))
    return Job(trial, tvm.ir.save_json(trial.schedule.mod), probe, target_dict(task.hardware, task.info.threads))


def evicting(task: Task) -> int:
    """Return the bytes of weights that go by between two calls with the same ones; 0: there are no others."""
    near = task.hardware.cache(2).size * task.info.threads
    far = task.hardware.cache(3).size
    if task.weights == L3:
        # Too much for the caches of the cores, and half of what they share: activations are there as well.
        return min(2 * near, max(far // 2, near))
    return 2 * max(far, near) if task.weights == MEMORY else 0


def judge(job: Job, timing: Timing, machine: Hardware | None) -> Measurement:
    """Hold a time against the machine's peak, where that is known: one that is faster is a measuring error."""
    info = job.trial.task.task.info
    peak = machine.peak(peak_dtype(info.a_dtype), info.threads) if machine is not None else 0.0
    verdict = sanity(timing.seconds_min, info.flops, peak, peak_spread=PEAK_MARGIN)
    if not verdict.believed:
        return Measurement("timing", error=verdict.message)
    return Measurement("ok", timing.seconds_min, timing.seconds_median, verdict.gflops)


@dataclass(eq=False)
class Bench:
    """A worker of this machine that builds and measures, one job at a time.

    Parameters
    ----------
    worker : Worker
        Builds and runs.
    limits : Limits
        Timeouts.
    machine : Hardware, optional
        With its measured peaks.
    """

    worker: Worker
    limits: Limits = field(default_factory=Limits)
    machine: Hardware | None = None
    _built: set[str] = field(default_factory=set)

    def build(self, job: Job) -> Measurement | None:
        """Compile a candidate in the worker; None when that went well."""
        token = job.trial.token
        outcome = self._call("build", token, (token, job.module, job.target, job.threads), self.limits.build)
        if outcome.ok:
            self._built.add(token)
            return None
        return Measurement("build", error=reason_of(outcome))

    def measure(self, job: Job) -> Measurement:
        """Check and time a candidate; it is built first if need be."""
        token = job.trial.token
        payload = (token, job.probe, job.target, job.threads, job.best)
        for _ in range(2):
            if token not in self._built:
                refused = self.build(job)
                if refused is not None:
                    return refused
            outcome = self._call("measure", token, payload, self.limits.run)
            lost = outcome.kind == "crash" or (outcome.ok and outcome.value.kind == "unbuilt")
            if not lost:
                break
        self._built.discard(token)
        if not outcome.ok:
            return Measurement("run", error=reason_of(outcome))
        timing = outcome.value
        if timing.kind != "ok":
            return Measurement("numbers", error=timing.message or timing.kind)
        return judge(job, timing, self.machine)

    def abort(self) -> None:
        """End a call under way, from another thread."""
        self.worker.abort()

    def _call(self, name: str, token: str, payload: tuple[Any, ...], seconds: float) -> Outcome:
        outcome = self.worker.call(f"{WORKER_MODULE}:{name}", payload, seconds)
        if outcome.kind in ("crash", "timeout", "memory"):
            _LOG.warning("%s of %s: %s", name, token, reason_of(outcome))
            # Whatever else was built went with the process.
            self._built.clear()
            if outcome.kind == "crash" and name == "build":
                # A crash may be the belated work of an earlier candidate in the same process: ask a fresh one.
                outcome = self.worker.call(f"{WORKER_MODULE}:{name}", payload, seconds)
        if outcome.ok and name == "measure" and not isinstance(outcome.value, Timing):
            return Outcome("error", message=f"the worker answered with a {type(outcome.value).__name__}")
        return outcome


def reason_of(outcome: Outcome) -> str:
    """Say in one line how a call ended."""
    lines = [line.strip() for line in outcome.message.splitlines() if line.strip()]
    text = lines[-1] if outcome.kind == "error" and lines else "; ".join(lines[:3])
    return f"{outcome.kind}: {text[:500]}"


@dataclass(frozen=True)
class Lab:
    """Where candidates are measured.

    Attributes
    ----------
    lanes : sequence of Lane
        What builds and measures, side by side.
    in_turn : bool
        Whether only one of them may measure at a time.
    starting : sequence of Thread
        Start the lanes' processes: nothing is measured before they are through, for a process that starts disturbs.
    """

    lanes: Sequence[Lane[Job, Measurement]]
    in_turn: bool
    starting: Sequence[threading.Thread] = ()

    def run(
        self, jobs: Sequence[Job], finish: Callable[[Job, Measurement], None], stopping: Callable[[], bool]
    ) -> list[Measurement | None]:
        """Build and measure jobs; see :func:`~qimeng_tvm.search.pipeline.run_lanes`."""
        for thread in self.starting:
            thread.join()
        return run_lanes(self.lanes[: len(jobs)], jobs, finish, stopping, in_turn=self.in_turn)


def intrins_of(schedule: Any) -> tuple[str, ...]:
    """Return the intrinsics that a schedule's trace tensorizes with."""
    names = {str(i.attrs[0]) for i in schedule.trace.insts if str(i.kind.name) == "Tensorize"}
    return tuple(sorted(names))


@derived_object
class TokenBuilder(ms.builder.PyBuilder):  # type: ignore[misc]
    """Hand every candidate on to the runner, which builds it while it measures another; the "artifact" is a token.

    Parameters
    ----------
    session : Session
        Knows the batch that MetaSchedule sends.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def build(self, build_inputs: Sequence[Any]) -> list[Any]:
        """Return the tokens of a batch, in the order that the strategy made it."""
        return [ms.builder.BuilderResult(t.token, None) for t in self.session.batch[: len(build_inputs)]]


@derived_object
class _Finished(ms.runner.PyRunnerFuture):  # type: ignore[misc]
    def __init__(self, result: Any) -> None:
        super().__init__()
        self._result = result

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        return self._result


@derived_object
class LabRunner(ms.runner.PyRunner):  # type: ignore[misc]
    """Build, check and time candidates in a lab; every trial is on disk as soon as it is measured.

    Parameters
    ----------
    lab : Lab
        Builds and measures.
    session : Session
        Takes the results.
    traces : TraceWriter
        Makes MetaSchedule's own records.
    """

    def __init__(self, lab: Lab, session: Session, traces: TraceWriter) -> None:
        super().__init__()
        self.lab = lab
        self.session = session
        self.traces = traces

    def run(self, runner_inputs: Sequence[Any]) -> list[Any]:
        """Measure a batch; the results are in its order."""
        with self.session.guard():
            jobs = [job_of(self.session.trials[str(i.artifact_path)]) for i in runner_inputs]
            found = self.lab.run(jobs, self._finish, lambda: self.session.stopping)
        return [_Finished(_result(measurement)) for measurement in found]

    def _finish(self, job: Job, found: Measurement) -> None:
        trial, tvm_record = job.trial, None
        if found.seconds_min is not None and found.seconds_median is not None:
            task = trial.task.task
            target = target_of(task.hardware, task.info.threads)
            seconds = [found.seconds_min, found.seconds_median]
            mod = tvm.IRModule({"main": task.func})
            tvm_record = self.traces.lines(mod, trial.schedule.trace, seconds, target)
        self.session.finish(trial, found, intrins_of(trial.schedule), tvm_record)


def _result(found: Measurement | None) -> Any:
    if found is None:
        return ms.runner.RunnerResult(None, _STOPPED)
    if found.seconds_min is None:
        return ms.runner.RunnerResult(None, found.error)
    return ms.runner.RunnerResult([found.seconds_min], None)
