"""MetaSchedule builder and runner on one persistent, confined worker: no process starts for a trial."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from qimeng_tvm.check.timing import sanity
from qimeng_tvm.check.worker import Outcome, Worker
from qimeng_tvm.hardware.target import target_dict, target_of
from qimeng_tvm.search.candidate import Probe, Timing, probe_of
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


@dataclass(eq=False)
class Bench:
    """The worker, and what it was given.

    Parameters
    ----------
    worker : Worker
        Builds and runs.
    limits : Limits
        Timeouts.
    peak_gflops : mapping
        Operand dtype -> measured peak on as many threads; a missing one is unknown.
    """

    worker: Worker
    limits: Limits = field(default_factory=Limits)
    peak_gflops: Mapping[str, float] = field(default_factory=dict)
    _probes: dict[str, Probe] = field(default_factory=dict)
    _targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    _built: set[str] = field(default_factory=set)

    def build(self, trial: Trial) -> Measurement | None:
        """Compile a trial in the worker; None when that went well."""
        module = tvm.ir.save_json(trial.schedule.mod)
        payload = (trial.token, module, self._target(trial))
        outcome = self._call("build", trial, payload, self.limits.build)
        if outcome.ok:
            self._built.add(trial.token)
            return None
        return Measurement("build", error=_reason(outcome))

    def measure(self, trial: Trial) -> Measurement:
        """Check and time a trial."""
        state = trial.task
        task = state.task
        probe = self._probes.get(state.workload)
        if probe is None:
            probe = self._probes[state.workload] = probe_of(state.workload, task.func, task.info.k)
        payload = (trial.token, probe, self._target(trial), task.info.threads, state.best_seconds)
        for _ in range(2):
            if trial.token not in self._built:
                refused = self.build(trial)
                if refused is not None:
                    return refused
            outcome = self._call("measure", trial, payload, self.limits.run)
            lost = outcome.kind == "crash" or (outcome.ok and outcome.value.kind == "unbuilt")
            if not lost:
                break
        self._built.discard(trial.token)
        if not outcome.ok:
            return Measurement("run", error=_reason(outcome))
        timing = outcome.value
        if timing.kind != "ok":
            return Measurement("numbers", error=timing.message or timing.kind)
        return self.judge(task.info.flops, task.info.a_dtype, timing)

    def _call(self, name: str, trial: Trial, payload: tuple[Any, ...], seconds: float) -> Outcome:
        outcome = self.worker.call(f"{WORKER_MODULE}:{name}", payload, seconds)
        if outcome.kind in ("crash", "timeout", "memory"):
            _LOG.warning("%s of %s: %s", name, trial.token, _reason(outcome))
            # Whatever else was built went with the process.
            self._built.clear()
            if outcome.kind == "crash" and name == "build":
                # A crash may be the belated work of an earlier candidate in the same process: ask a fresh one.
                outcome = self.worker.call(f"{WORKER_MODULE}:{name}", payload, seconds)
        if outcome.ok and name == "measure" and not isinstance(outcome.value, Timing):
            return Outcome("error", message=f"the worker answered with a {type(outcome.value).__name__}")
        return outcome

    def judge(self, flops: float, dtype: str, timing: Timing) -> Measurement:
        """Hold a time against the peak: one that is faster is a measuring error."""
        key = "int8" if dtype in ("int8", "uint8") else dtype
        verdict = sanity(timing.seconds_min, flops, self.peak_gflops.get(key, 0.0), peak_spread=PEAK_MARGIN)
        if not verdict.believed:
            return Measurement("timing", error=verdict.message)
        return Measurement("ok", timing.seconds_min, timing.seconds_median, verdict.gflops)

    def _target(self, trial: Trial) -> dict[str, Any]:
        task = trial.task.task
        key = f"{task.hardware.fingerprint}/{task.info.threads}"
        if key not in self._targets:
            self._targets[key] = target_dict(task.hardware, task.info.threads)
        return self._targets[key]


def _reason(outcome: Outcome) -> str:
    lines = [line.strip() for line in outcome.message.splitlines() if line.strip()]
    text = lines[-1] if outcome.kind == "error" and lines else "; ".join(lines[:3])
    return f"{outcome.kind}: {text[:500]}"


def intrins_of(schedule: Any) -> tuple[str, ...]:
    """Return the intrinsics that a schedule's trace tensorizes with."""
    names = {str(i.attrs[0]) for i in schedule.trace.insts if str(i.kind.name) == "Tensorize"}
    return tuple(sorted(names))


@derived_object
class WorkerBuilder(ms.builder.PyBuilder):  # type: ignore[misc]
    """Compile candidates in the worker; the "artifact" is their token.

    Parameters
    ----------
    bench : Bench
        The worker.
    session : Session
        Knows the batch that MetaSchedule sends, and takes failures.
    """

    def __init__(self, bench: Bench, session: Session) -> None:
        super().__init__()
        self.bench = bench
        self.session = session

    def build(self, build_inputs: Sequence[Any]) -> list[Any]:
        """Build a batch in the order that the strategy made it."""
        with self.session.guard():
            return [self._one(trial) for trial in self.session.batch[: len(build_inputs)]]

    def _one(self, trial: Trial) -> Any:
        if self.session.stopping:
            return ms.builder.BuilderResult(None, _STOPPED)
        refused = self.bench.build(trial)
        if refused is None:
            return ms.builder.BuilderResult(trial.token, None)
        self.session.finish(trial, refused, intrins_of(trial.schedule), None)
        return ms.builder.BuilderResult(None, refused.error)


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
class WorkerRunner(ms.runner.PyRunner):  # type: ignore[misc]
    """Check and time candidates in the worker; every trial is on disk before the next one starts.

    Parameters
    ----------
    bench : Bench
        The worker.
    session : Session
        Takes the results.
    traces : TraceWriter
        Makes MetaSchedule's own records.
    """

    def __init__(self, bench: Bench, session: Session, traces: TraceWriter) -> None:
        super().__init__()
        self.bench = bench
        self.session = session
        self.traces = traces

    def run(self, runner_inputs: Sequence[Any]) -> list[Any]:
        """Measure a batch, one candidate after another."""
        with self.session.guard():
            return [_Finished(self._one(self.session.trials[str(i.artifact_path)])) for i in runner_inputs]

    def _one(self, trial: Trial) -> Any:
        if self.session.stopping:
            return ms.runner.RunnerResult(None, _STOPPED)
        found = self.bench.measure(trial)
        tvm_record = None
        if found.seconds_min is not None and found.seconds_median is not None:
            task = trial.task.task
            target = target_of(task.hardware, task.info.threads)
            seconds = [found.seconds_min, found.seconds_median]
            mod = tvm.IRModule({"main": task.func})
            tvm_record = self.traces.lines(mod, trial.schedule.trace, seconds, target)
        self.session.finish(trial, found, intrins_of(trial.schedule), tvm_record)
        if found.seconds_min is None:
            return ms.runner.RunnerResult(None, found.error)
        return ms.runner.RunnerResult([found.seconds_min], None)
