"""Where the time of a compiled model goes: every call of the virtual machine timed, on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np
import tvm
from tvm import relax

from qimeng_tvm.errors import UsageError
from qimeng_tvm.hardware import Hardware, use_threads
from qimeng_tvm.hardware.model import peak_dtype
from qimeng_tvm.intrin import family
from qimeng_tvm.relax.report import FunctionReport, PipelineReport
from qimeng_tvm.relax.signature import MAIN, Parameter, bind_weights, inputs_of, parameters_of

#: Runs that a median is taken of, and those before, which warm caches and threads up.
RUNS, WARM_UP = 11, 2
#: What TVM puts behind a function's name when its weights are packed beforehand.
_PACKED = "_prepacked"
#: The virtual machine's own calls: memory, shapes, views.
_OWN = "vm.builtin."


@dataclass(frozen=True)
class FunctionTime:
    """One function of a model, and its time.

    Attributes
    ----------
    function : FunctionReport
        What became of it.
    seconds : float
        Of all its calls in one run of the model, median.
    share : float
        Of the time of all functions.
    gflops : float or None
        None where it neither multiplies nor sums.
    of_peak : float or None
        Share of the machine's peak; None without an intrinsic, or when the peak is not known.
    """

    function: FunctionReport
    seconds: float
    share: float
    gflops: float | None
    of_peak: float | None


@dataclass(frozen=True)
class ModelTime:
    """A model's functions with their times.

    Attributes
    ----------
    functions : tuple of FunctionTime
        The slowest first.
    seconds : float
        Of one run, median, with nothing in between that times it.
    unknown : mapping of str to float
        Seconds of what is called and has no report: functions of libraries.
    """

    functions: tuple[FunctionTime, ...]
    seconds: float
    unknown: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def random_inputs(parameters: Sequence[Parameter], seed: int = 0) -> tuple[np.ndarray[Any, Any], ...]:
    """Return arrays that fit: normal numbers, and zeros where they may be indices.

    Raises
    ------
    UsageError
        If an extent is not fixed.
    """
    rng = np.random.default_rng(seed)
    return tuple(_random(p, rng) for p in parameters)


def random_weights(module: tvm.IRModule) -> tvm.IRModule:
    """Make weights that are parameters random constants: what a model costs does not depend on them."""
    behind = parameters_of(module)[inputs_of(module) :]
    return bind_weights(module, {p.name: w for p, w in zip(behind, random_inputs(behind), strict=True)})


def _random(parameter: Parameter, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    extents = [n for n in parameter.shape if n is not None]
    if len(extents) < len(parameter.shape):
        raise UsageError(f"the model's {parameter} has sizes that are not fixed: say which, by --input NAME=SHAPE")
    dtype = np.dtype(getattr(ml_dtypes, parameter.dtype, parameter.dtype))
    if dtype.kind in "iu":
        return np.zeros(extents, dtype)
    if dtype.kind == "b":
        return np.ones(extents, dtype)
    return rng.standard_normal(extents).astype(dtype)


def time_model(
    executable: Any,
    report: PipelineReport,
    hardware: Hardware,
    inputs: Sequence[tvm.runtime.Tensor],
    runs: int = RUNS,
) -> ModelTime:
    """Time a model on this machine, as a whole and function by function.

    Parameters
    ----------
    executable : tvm.relax.VMExecutable
        The model, built.
    report : PipelineReport
        Of its build.
    hardware : Hardware
        The machine, with measured peaks.
    inputs : sequence of tvm.runtime.Tensor
        What ``main`` takes.
    runs : int
        Runs that a median is taken of.
    """
    # A machine of its own: an instrument cannot be taken off again.
    with use_threads(report.threads, pin=True):
        whole = _times_whole(relax.VirtualMachine(executable, tvm.cpu()), inputs, runs)
        calls = _times_of_calls(relax.VirtualMachine(executable, tvm.cpu()), inputs, runs)
    named = {f.name: f for f in report.functions}
    known = {name: calls[symbol] for symbol in calls if (name := symbol.removesuffix(_PACKED)) in named}
    total = sum(known.values())
    functions = [
        _function(named[name], seconds, seconds / total if total else 0.0, hardware, report.threads)
        for name, seconds in known.items()
    ]
    return ModelTime(
        functions=tuple(sorted(functions, key=lambda f: -f.seconds)),
        seconds=whole,
        unknown={symbol: s for symbol, s in calls.items() if symbol.removesuffix(_PACKED) not in named},
    )


def _function(report: FunctionReport, seconds: float, share: float, hardware: Hardware, threads: int) -> FunctionTime:
    gflops = report.calls * report.flops / seconds / 1e9 if report.contraction and seconds else None
    peak = hardware.peak(peak_dtype(family(report.family).dtypes[0]), threads) if report.family else 0.0
    return FunctionTime(report, seconds, share, gflops, gflops / peak if gflops is not None and peak else None)


def _times_whole(vm: Any, inputs: Sequence[Any], runs: int) -> float:
    main: Callable[..., Any] = vm[MAIN]
    taken = []
    for _ in range(WARM_UP + runs):
        start = time.perf_counter()
        main(*inputs)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[WARM_UP:])


def _times_of_calls(vm: Any, inputs: Sequence[Any], runs: int) -> Mapping[str, float]:
    """Return the median, over runs, of the seconds that all calls of a symbol take."""
    run: dict[str, float] = {}
    started = [0.0]

    def instrument(_: Any, symbol: str, before: bool, *__: Any) -> None:
        if before:
            started[0] = time.perf_counter()
        else:
            run[symbol] = run.get(symbol, 0.0) + time.perf_counter() - started[0]

    vm.set_instrument(instrument)
    main: Callable[..., Any] = vm[MAIN]
    taken: dict[str, list[float]] = {}
    for index in range(WARM_UP + runs):
        run.clear()
        main(*inputs)
        for symbol, seconds in run.items() if index >= WARM_UP else ():
            taken.setdefault(symbol, []).append(seconds)
    return {symbol: statistics.median(s) for symbol, s in taken.items() if not symbol.startswith(_OWN)}
