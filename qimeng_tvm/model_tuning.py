"""Tune the operators of a whole model; builds of the model, and single lines, find what was recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qimeng_tvm.api import DEFAULT_TRIALS, checked_threads, default_database
from qimeng_tvm.errors import ModelError, QimengError, last_words
from qimeng_tvm.hardware import Hardware, configure_threads, measured
from qimeng_tvm.relax.sources import read_model

if TYPE_CHECKING:
    from tvm import IRModule

    from qimeng_tvm.relax.buckets import Buckets
    from qimeng_tvm.relax.functions import ModelFunction
    from qimeng_tvm.search import TaskResult, TuneResult

Say = Callable[[str], None]


@dataclass(frozen=True)
class TunedFunction:
    """One function of a model, and what tuning found for it.

    Attributes
    ----------
    name : str
        In the fused module.
    operator : str
        Kind, extents and dtypes of its contraction.
    calls : int
        How often one run of the model calls it.
    result : TaskResult
        Decisions, record, trials.
    share : float
        Of the time that all tuned functions take in one run of the model; 0 when it was not measured.
    """

    name: str
    operator: str
    calls: int
    result: TaskResult
    share: float

    @property
    def seconds(self) -> float:
        """Seconds of all its calls in one run of the model; 0 when it was not measured."""
        return _seconds(self.result, self.calls)


@dataclass(frozen=True)
class ModelResult:
    """What :func:`tune_model` found.

    Attributes
    ----------
    functions : tuple of TunedFunction
        What a rule serves, in the model's order.
    others : tuple of ModelFunction
        What none serves, with the reason; TVM's own schedules are left with these.
    tuning : TuneResult
        Trials, wall time, why it ended early.
    records : Path
        Folder of the tuning records.
    """

    functions: tuple[TunedFunction, ...]
    others: tuple[ModelFunction, ...]
    tuning: TuneResult
    records: Path


def tune_model(
    model: str | os.PathLike[str] | IRModule,
    *,
    trials: int = DEFAULT_TRIALS,
    strategy: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    database: str | os.PathLike[str] | None = None,
    time_limit: float | None = None,
    dtype: str = "f32",
    buckets: Buckets | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    say: Say = lambda _: None,
    bar: Any = None,
) -> ModelResult:
    """Tune the operators of a model on this machine.

    The model takes the passes that an operator asked for in one line takes, so that each finds the other's records.
    With the same threads, ``dtype``, ``buckets`` and shapes, :func:`qimeng_tvm.compile` finds them.

    Parameters
    ----------
    model : path or tvm.IRModule
        ``.onnx``, ``.pt2`` (``torch.export.save``), ``.json`` (``tvm.ir.save_json``), or a Relax module.
    trials : int
        Measured trials over all operators, those of earlier runs included. Every operator has its analytic decisions
        measured first, also where there are more operators than trials.
    strategy : str, optional
        A key of :data:`qimeng_tvm.search.choose.STRATEGIES`.
    threads : int, optional
        Cores; all of the machine by default, as when a model is compiled.
    seed : int
        Of the search.
    database : path, optional
        Folder of the tuning records.
    time_limit : float, optional
        Start no trial after so many seconds.
    dtype : str
        What products and convolutions of float32 are computed in: ``f32`` or ``bf16``.
    buckets : mapping, optional
        Sizes of flexible dimensions that get functions of their own, as when a model is compiled.
    shapes : mapping, optional
        Shapes of inputs, by name, whose sizes are to be fixed.
    say : callable
        Told of every stage.
    bar : callable, optional
        Called after every trial; see :func:`qimeng_tvm.search.tune`.

    Raises
    ------
    UsageError
        If there is no such file, strategy, type or number of cores, or buckets or shapes do not fit the model.
    ModelError
        If the model cannot be read or legalized, or no rule serves any of it.
    SearchError, RecordError
        As of :func:`qimeng_tvm.search.tune`.
    """
    from qimeng_tvm.relax.functions import functions_in  # noqa: PLC0415 (TVM takes seconds)
    from qimeng_tvm.relax.pipeline import Pipeline  # noqa: PLC0415
    from qimeng_tvm.relax.signature import fix_shapes  # noqa: PLC0415
    from qimeng_tvm.schedule.apply import REFUSALS  # noqa: PLC0415
    from qimeng_tvm.search.choose import DEFAULT, strategy_of  # noqa: PLC0415

    chosen = strategy or DEFAULT
    strategy_of(chosen)  # a wrong name is told before anything is read or measured
    host = Hardware.host()
    count = checked_threads(host.cores if threads is None else threads, host)
    name = "the model"
    if isinstance(model, (str, os.PathLike)):
        name = str(model)
        say(f"reading {name}")
        model = read_model(model)
    passes = Pipeline(measured(host), threads=count, dtype=dtype, buckets=buckets)
    module = fix_shapes(model, shapes or {})
    try:
        fused = passes.fused(module)
    except QimengError:
        raise
    except REFUSALS as error:
        raise ModelError(f"TVM cannot legalize the model ({last_words(error)})") from error
    hardware, folder = passes.machine(), Path(database) if database is not None else default_database()
    return tune_functions(
        functions_in(fused, hardware, count), hardware, count, folder, trials,
        strategy=chosen, seed=seed, time_limit=time_limit, name=name, say=say, bar=bar,
    )  # fmt: skip


def tune_functions(
    found: Sequence[ModelFunction],
    hardware: Hardware,
    threads: int,
    folder: Path,
    trials: int,
    *,
    strategy: str | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    name: str = "the model",
    say: Say = lambda _: None,
    bar: Any = None,
) -> ModelResult:
    """Tune functions of a model; see :func:`tune_model`.

    Raises
    ------
    ModelError
        If no rule serves any of them.
    """
    from qimeng_tvm.search import tune  # noqa: PLC0415 (xgboost and MetaSchedule are needed only here)
    from qimeng_tvm.search.choose import DEFAULT  # noqa: PLC0415

    chosen = strategy or DEFAULT
    served = [(f, f.task) for f in found if f.task is not None]
    others = tuple(f for f in found if f.task is None)
    if not served:
        reasons = ", ".join(dict.fromkeys(f"{f.name}: {f.why}" for f in others)) or "it calls nothing"
        raise ModelError(f"no rule serves anything in {name} ({reasons[:400]})")
    configure_threads(threads)
    say(_plan(chosen, trials, len(served), len(others)))
    tuning = tune(
        [task for _, task in served],
        trials,
        folder,
        hardware,
        None,  # of the tasks some are parts of a function that its cores share, and have one
        seed,
        bar,
        time_limit,
        weights=[float(f.calls) for f, _ in served],
        strategy=chosen,
    )
    return ModelResult(_tuned([f for f, _ in served], tuning.results), others, tuning, folder)


def _plan(strategy: str, trials: int, served: int, others: int) -> str:
    text = f"tuning by {strategy}, {trials} trials: operators {served}, functions without a rule {others}"
    if 0 < trials < served:
        text += "; every operator gets one trial, though fewer were asked for"
    return text


def _tuned(functions: list[ModelFunction], results: tuple[TaskResult, ...]) -> tuple[TunedFunction, ...]:
    total = sum(_seconds(r, f.calls) for f, r in zip(functions, results, strict=True))
    return tuple(
        TunedFunction(
            name=f.name,
            operator=r.task.info.operator,
            calls=f.calls,
            result=r,
            share=_seconds(r, f.calls) / total if total else 0.0,
        )
        for f, r in zip(functions, results, strict=True)
    )


def _seconds(result: TaskResult, calls: int) -> float:
    return calls * ((result.record.seconds_min or 0.0) if result.record is not None else 0.0)
