"""Models from files and from memory: ONNX, PyTorch and Relax modules, read by TVM's own front ends."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qimeng_tvm.errors import ModelError, UsageError
from qimeng_tvm.relax.qlinear import as_qdq

if TYPE_CHECKING:
    from tvm import IRModule

#: torch.load then takes nothing but tensors out of pickled data, whatever its caller says.
_TENSORS_ALONE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def is_model(text: str) -> bool:
    """Tell whether an argument names a model's file: one that is there, or one by its suffix."""
    if Path(text).suffix.lower() in READERS:
        return True
    try:
        return Path(text).is_file()
    except OSError:  # a line longer than a file name can be
        return False


def module_of(model: object, inputs: Any = None) -> IRModule:
    """Return a model, in memory or in a file, as a Relax module, its weights as constants.

    Parameters
    ----------
    model : object
        ``torch.nn.Module``, ``torch.export.ExportedProgram``, ``onnx.ModelProto``, Relax ``IRModule``, or the path of a
        file that :func:`read_model` reads.
    inputs : array, sequence or mapping of arrays, optional
        Examples, by position or by name: what a ``torch.nn.Module`` is exported with.

    Raises
    ------
    UsageError
        If it is none of these, or a ``torch.nn.Module`` without inputs.
    ModelError
        As of :func:`read_model`.
    """
    if isinstance(model, (str, os.PathLike)):
        return read_model(model)
    # Whoever holds such an object has imported its package.
    torch, onnx, tvm = (sys.modules.get(name) for name in ("torch", "onnx", "tvm"))
    if torch is not None and isinstance(model, torch.nn.Module):
        return from_program(export(model, inputs))
    if torch is not None and isinstance(model, torch.export.ExportedProgram):
        return from_program(model)
    if onnx is not None and isinstance(model, onnx.ModelProto):
        return _from_onnx(model, "the model")
    if tvm is not None and isinstance(model, tvm.IRModule):
        return model
    raise UsageError(
        f"a {type(model).__name__} is not a model: a torch.nn.Module, an ExportedProgram, an ONNX ModelProto, a Relax "
        "module or the path of a file is"
    )


def export(module: Any, inputs: Any) -> Any:
    """Return a ``torch.nn.Module``, as it is in evaluation mode, as an ``ExportedProgram``.

    Raises
    ------
    UsageError
        If there are no example inputs.
    ModelError
        If PyTorch cannot export it.
    """
    torch = importlib.import_module("torch")
    if inputs is None:
        raise UsageError("a torch.nn.Module needs example inputs: compile(model, inputs)")
    named = inputs if isinstance(inputs, Mapping) else {}
    given = () if named else tuple(inputs) if isinstance(inputs, Sequence) else (inputs,)
    kept = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        with torch.no_grad(), _quiet("torch.export"), _reading("the model", "cannot be exported by torch.export"):
            return torch.export.export(
                module, tuple(map(_torch_value, given)), {name: _torch_value(x) for name, x in named.items()}
            )
    finally:
        for part, training in kept:
            part.training = training


def _torch_value(value: Any) -> Any:
    """Return an example as PyTorch takes it: NumPy's arrays as tensors."""
    return sys.modules["torch"].from_numpy(value) if type(value).__module__ == "numpy" else value


def from_program(program: Any, name: str = "the model") -> IRModule:
    """Return an ``ExportedProgram`` as a Relax module.

    What it writes into its own buffers or its inputs is dropped, with a warning: a compiled model is a function.

    Raises
    ------
    ModelError
        If TVM's front end refuses it.
    """
    from tvm.relax.frontend.torch import from_exported_program  # noqa: PLC0415 (TVM takes seconds)

    with _reading(name, "is refused by TVM's PyTorch front end"):
        program = program.run_decompositions()
        lost = written(program)
        module = from_exported_program(program, unwrap_unit_return_tuple=True, run_ep_decomposition=False)
    if lost:
        told = ", ".join(lost[:4]) + (", ..." if len(lost) > 4 else "")
        warnings.warn(f"{name} writes into {told}: what it writes is dropped", RuntimeWarning, stacklevel=3)
    return module


def written(program: Any) -> tuple[str, ...]:
    """Return the buffers and inputs that a decomposed ``ExportedProgram`` writes into."""
    signature = program.graph_signature
    return (*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values())


def read_model(path: str | os.PathLike[str]) -> IRModule:
    """Return a model as a Relax module, its weights as constants.

    Parameters
    ----------
    path : path
        ``.onnx``; ``.pt2``, as ``torch.export.save`` writes it; ``.json``, a Relax module by ``tvm.ir.save_json``.

    Raises
    ------
    UsageError
        If there is no such file, or its suffix is another one.
    ModelError
        If it is damaged, TVM's front end refuses it, or a package is missing that reads it.
    """
    file = Path(path)
    if not file.exists():
        raise UsageError(f"there is no file {file}")
    read = READERS.get(file.suffix.lower())
    if read is None or not file.is_file():
        raise UsageError(f"{file} is not a model that can be read; these are: {', '.join(f'*{s}' for s in READERS)}")
    return read(file)


@contextmanager
def _reading(file: Path | str, what: str) -> Iterator[None]:
    """Turn what a front end raises, which is nearly anything, into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except OSError as error:
        raise ModelError(f"cannot read {file} ({error.strerror or error})") from error
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{file} {what}: {_short(error)}") from error


def _short(error: BaseException) -> str:
    """Return what an error says, on one line: TVM's end with the reason, others begin with it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if line.startswith("InternalError")), lines[0] if lines else "")
    return f"{type(error).__name__}: {told[:300]}" if told else type(error).__name__


def _package(name: str, file: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"reading {file} needs the package {name}: pip install 'qimeng-tvm[models]'") from error


def _onnx(file: Path) -> IRModule:
    onnx = _package("onnx", file)
    with _reading(file, "is not an ONNX model, or is damaged"):
        model = onnx.load(str(file))
        if not model.graph.node:
            raise ValueError("its graph is empty")
    return _from_onnx(model, file)


def _from_onnx(model: Any, name: Path | str) -> IRModule:
    from tvm.relax.frontend.onnx import from_onnx  # noqa: PLC0415 (TVM and ONNX take seconds)

    with _reading(name, "is refused by TVM's ONNX front end"):
        return from_onnx(as_qdq(model))


def _torch(file: Path) -> IRModule:
    what = "is not an archive of torch.export.save, or is damaged"
    _package("torch", file)
    if not zipfile.is_zipfile(file):
        raise ModelError(f"{file} {what}")
    archives = importlib.import_module("torch.export")
    with _reading(file, what), _quiet("torch.export"), _tensors_alone():
        program = archives.load(str(file))
    return from_program(program, str(file))


def _relax(file: Path) -> IRModule:
    import tvm  # noqa: PLC0415 (as above)
    from tvm import relax  # noqa: PLC0415

    with _reading(file, "is not a module of tvm.ir.save_json, or is damaged"):
        module = tvm.ir.load_json(file.read_text(encoding="utf-8"))
    functions = module.functions.values() if isinstance(module, tvm.IRModule) else ()
    if not any(isinstance(f, relax.Function) for f in functions):
        raise ModelError(f"{file} holds no Relax function: write it by tvm.ir.save_json(module)")
    return module


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """Refuse pickled objects other than tensors: reading them runs code of the file's choice."""
    before = os.environ.get(_TENSORS_ALONE)
    os.environ[_TENSORS_ALONE] = "1"
    try:
        yield
    finally:
        os.environ.pop(_TENSORS_ALONE)
        if before is not None:
            os.environ[_TENSORS_ALONE] = before


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger that prints the traceback of an error it also raises."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


#: By suffix, what reads it.
READERS: Mapping[str, Callable[[Path], IRModule]] = MappingProxyType({".onnx": _onnx, ".pt2": _torch, ".json": _relax})
