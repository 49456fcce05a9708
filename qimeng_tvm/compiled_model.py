"""``compile``: a model of any front end as machine code, called like the model itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from qimeng_tvm.api import checked_threads
from qimeng_tvm.compiler import export_library
from qimeng_tvm.errors import ModelError, QimengError, UsageError, last_line
from qimeng_tvm.hardware import Hardware, configure_threads, measured, target_of, threads_in_force
from qimeng_tvm.hardware.tables import CODEGEN_FEATURES
from qimeng_tvm.relax.buckets import Buckets
from qimeng_tvm.relax.pipeline import Pipeline
from qimeng_tvm.relax.profile import RUNS, ModelTime, random_inputs, time_model
from qimeng_tvm.relax.report import PipelineReport
from qimeng_tvm.relax.signature import (
    MAIN,
    Parameter,
    as_tensor,
    bind_weights,
    fix_shapes,
    inputs_of,
    parameters_of,
    torch_in_place,
)
from qimeng_tvm.relax.sources import module_of
from qimeng_tvm.schedule.apply import REFUSALS

Say = Callable[[str], None]

_LIBRARY = ".so"


class CompiledModel:
    """A model as machine code; called with arrays of NumPy or PyTorch, it returns the same kind.

    One output comes as it is, several as a tuple.

    Parameters
    ----------
    executable : tvm.relax.VMExecutable
        What TVM built.
    report : PipelineReport
        What became of every function.
    parameters : sequence of Parameter
        What ``main`` takes, before any weights.
    weights : sequence of Parameter
        Those that were left as parameters; the model can be exported, and not called.
    hardware : Hardware
        The machine that the code is for.
    """

    def __init__(
        self,
        executable: Any,
        report: PipelineReport,
        parameters: Sequence[Parameter],
        weights: Sequence[Parameter],
        hardware: Hardware,
    ) -> None:
        self.executable, self.report, self.hardware = executable, report, hardware
        self.parameters, self.weights = tuple(parameters), tuple(weights)
        self._main: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the model; inputs by position, or by the names in ``parameters``.

        Raises
        ------
        UsageError
            If they do not fit, or this machine cannot run the code.
        """
        if self._main is None:
            self._main = self._loaded()
        given = self._in_order(inputs, named)
        from_torch = any(hasattr(x, "detach") for x in given)
        arguments = [torch_in_place(x) if hasattr(x, "detach") else as_tensor(x) for x in given]
        for argument, parameter in zip(arguments, self.parameters, strict=True):
            _check(argument, parameter)
        self._use_threads()
        return _result(self._main(*arguments), from_torch)

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write a shared library that ``tvm.runtime.load_module`` and ``relax.VirtualMachine`` run.

        Raises
        ------
        UsageError
            If the name does not end in ``.so``.
        BuildError
            If it cannot be written or linked, or nothing here links for the machine that the code is for; what was
            there before is then left as it was.
        """
        return export_library(self.executable, check_library(Path(path)), self.hardware)

    def profile(self, inputs: Sequence[Any] | None = None, runs: int = RUNS) -> ModelTime:
        """Time the model on this machine, as a whole and function by function, on random inputs if none are given.

        Raises
        ------
        UsageError
            If the sizes of an input are not fixed, or this machine cannot run the code.
        """
        if self._main is None:
            self._main = self._loaded()
        given = random_inputs(self.parameters) if inputs is None else inputs
        return time_model(self.executable, self.report, self.hardware, [as_tensor(x) for x in given], runs)

    def _loaded(self) -> Callable[..., Any]:
        if self.weights:
            names = ", ".join(p.name for p in self.weights[:4])
            raise UsageError(f"the model's weights are parameters ({names}): give them to compile, params=...")
        host = Hardware.host()
        needed = self.hardware.features & CODEGEN_FEATURES.get(self.hardware.isa, frozenset())
        if self.hardware.isa != host.isa or not host.has(*needed):
            raise UsageError(f"this machine ({host.name}) cannot run code for {self.hardware.name}")
        main: Callable[..., Any] = relax.VirtualMachine(self.executable, tvm.cpu())[MAIN]
        return main

    def _in_order(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        behind = self.parameters[len(inputs) :]
        if len(inputs) > len(self.parameters) or {p.name for p in behind} != set(named):
            takes = ", ".join(map(str, self.parameters)) or "nothing"
            raise UsageError(f"{len(inputs) + len(named)} inputs given, and the model takes {takes}")
        return [*inputs, *(named[p.name] for p in behind)]

    def _use_threads(self) -> None:
        # TVM's pool belongs to the calling thread; asking what is in force costs nothing.
        if threads_in_force() != self.report.threads:
            configure_threads(self.report.threads)


def check_library(file: Path) -> Path:
    """Return a path that a shared library can be written to, as far as its name tells.

    Raises
    ------
    UsageError
        If it does not end in ``.so``, is a folder, or nothing can be written where it is to be.
    """
    if file.suffix != _LIBRARY or file.is_dir():
        raise UsageError(f"{file} is not the name of a shared library: *{_LIBRARY}")
    folder = next(p for p in file.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write to {file.parent}")
    return file


def compile(
    model: Any,
    inputs: Any = None,
    *,
    trials: int = 0,
    threads: int | None = None,
    database: str | os.PathLike[str] | None = None,
    hardware: Hardware | None = None,
    params: Mapping[str, Any] | None = None,
    dtype: str = "f32",
    buckets: Buckets | None = None,
    winograd: bool = True,
    say: Say = lambda _: None,
) -> CompiledModel:
    """Compile a model for this machine.

    Parameters
    ----------
    model : object
        ``torch.nn.Module`` (taken in evaluation mode), ``torch.export.ExportedProgram``, ``onnx.ModelProto``, a Relax
        ``IRModule``, or a path: ``.onnx``, ``.pt2`` (``torch.export.save``), ``.json`` (``tvm.ir.save_json``).
    inputs : array, sequence or mapping of arrays, optional
        Examples, by position or by name. A ``torch.nn.Module`` needs them; elsewhere they fix sizes that are flexible.
    trials : int
        Measured trials over all functions beforehand; with 0, records of earlier tuning are used and nothing is
        measured.
    threads : int, optional
        Cores that the code may use; all of the machine by default.
    database : path, optional
        Folder of the tuning records; the user's own by default.
    hardware : Hardware, optional
        Another machine, to export a library for.
    params : mapping, optional
        Weights of a Relax module that has them as parameters: arrays by name, or as ``relax.frontend.detach_params``
        returns them.
    dtype : str
        ``f32``, or ``bf16``: products and convolutions of float32 then take operands rounded to bfloat16. Quantized
        ONNX models are computed on integers in any case.
    buckets : mapping, optional
        Sizes of flexible dimensions, by name, that get code of their own; by default a few of one such dimension.
    winograd : bool
        Whether 3x3 convolutions of float32 may be computed by Winograd's method where that is faster.
    say : callable
        Told of every stage.

    Raises
    ------
    UsageError
        If this is no model, or inputs, weights or options do not fit it.
    ModelError
        If it cannot be read, or TVM refuses it.
    QimengError
        As of :func:`qimeng_tvm.tune_model`, when there are trials.
    """
    machine = hardware if hardware is not None else measured(Hardware.host())
    count = checked_threads(machine.cores if threads is None else threads, machine)
    passes = Pipeline(machine, database, trials, count, say=say, dtype=dtype, buckets=buckets, winograd=winograd)
    say("read the model")
    module = module_of(model, inputs)
    if params:
        module = bind_weights(module, params)
    if inputs is not None and not hasattr(model, "state_dict"):  # PyTorch has exported a module for these inputs
        module = fix_shapes(module, _shapes(inputs))
    return compile_module(module, passes)


def compile_module(module: tvm.IRModule, passes: Pipeline) -> CompiledModel:
    """Compile a Relax module by a pipeline.

    Raises
    ------
    ModelError
        If TVM refuses it.
    """
    machine = passes.machine()
    told, count = parameters_of(module), inputs_of(module)
    try:
        executable = relax.build(module, target_of(machine, passes.cores(machine)), relax_pipeline=passes)
    except QimengError:
        raise
    except REFUSALS as error:
        raise ModelError(f"TVM cannot compile the model ({last_line(error)})") from error
    assert passes.report is not None  # the pipeline has run
    return CompiledModel(executable, passes.report, told[:count], told[count:], machine)


def _shapes(inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _shape(x) for name, x in inputs.items()}
    return [_shape(x) for x in (inputs if isinstance(inputs, Sequence) else [inputs])]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in getattr(value, "shape", ()))


def _check(argument: Any, parameter: Parameter) -> None:
    dtype, shape = str(argument.dtype).removeprefix("torch."), tuple(argument.shape)
    fits = len(shape) == len(parameter.shape) and all(
        wanted in (None, n) for wanted, n in zip(parameter.shape, shape, strict=True)
    )
    if dtype != parameter.dtype or not fits:
        raise UsageError(f"{dtype} {'x'.join(map(str, shape)) or 'scalar'} given for the model's {parameter}")


def _result(value: Any, from_torch: bool) -> Any:
    if hasattr(value, "detach"):
        return value
    if isinstance(value, tvm.runtime.Tensor):
        return _torch_output(value) if from_torch else value.numpy()
    if value is None:
        return None
    return tuple(_result(v, from_torch) for v in value)


def _torch_output(value: tvm.runtime.Tensor) -> Any:
    from torch.utils.dlpack import from_dlpack  # noqa: PLC0415 (only where the inputs are PyTorch's)

    return from_dlpack(value)
