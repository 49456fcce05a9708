"""Build a model by way of TVM's ONNX front end and run it: what happens in a worker."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qimeng_tvm.graph_fuzz.graph import Array

if TYPE_CHECKING:
    import tvm

    from qimeng_tvm.hardware import Hardware

#: Pipelines that can be checked: ours, and TVM's own.
OURS, DEFAULT = "qimeng", "default"


@dataclass(frozen=True, eq=False)
class Ran:
    """What came of a model.

    Attributes
    ----------
    kind : str
        ``ok``; ``import`` (TVM's front end refuses it); ``build``; ``run``; ``unstable`` (two runs differ).
    message : str
        Of the error.
    outputs : tuple of ndarray
        In the model's order.
    functions : tuple of str
        Name of each function and what scheduled it.
    """

    kind: str
    message: str = ""
    outputs: tuple[Array, ...] = ()
    functions: tuple[str, ...] = field(default_factory=tuple)


def build_and_run(model: bytes, feeds: Mapping[str, Array], pipeline: str, hardware: Hardware, threads: int) -> Ran:
    """Build a model and run it twice."""
    import onnx  # noqa: PLC0415 (an extra; these import TVM: in the worker only)
    from tvm.relax.frontend.onnx import from_onnx  # noqa: PLC0415

    _stage("importing")
    try:
        module = from_onnx(onnx.load_from_string(model), keep_params_in_input=False)
    except Exception as error:  # whatever a front end raises
        return Ran("import", _told(error))
    functions: list[str] = []
    _stage("building")
    try:
        runnable = _build(module, pipeline, hardware, threads, functions)
    except Exception as error:
        return Ran("build", _told(error))
    _stage(f"running {'; '.join(functions)}")
    try:
        first, second = (_run(runnable, list(feeds.values()), threads) for _ in range(2))
    except Exception as error:
        return Ran("run", _told(error), functions=tuple(functions))
    same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))
    return Ran("ok" if same else "unstable", "" if same else "two runs differ", first, tuple(functions))


def _build(module: tvm.IRModule, pipeline: str, hardware: Hardware, threads: int, functions: list[str]) -> Any:
    from tvm import relax  # noqa: PLC0415

    from qimeng_tvm.hardware import target_of  # noqa: PLC0415
    from qimeng_tvm.relax.pipeline import Pipeline  # noqa: PLC0415

    target = target_of(hardware, threads)
    if pipeline == DEFAULT:
        return relax.build(module, target, relax_pipeline="default")
    with tempfile.TemporaryDirectory() as records:
        ours = Pipeline(hardware=hardware, database=Path(records), threads=threads)
        runnable = relax.build(module, target, relax_pipeline=ours)
    for function in ours.report.functions if ours.report is not None else ():
        functions.append(f"{function.name}: {function.rule or function.source} {function.why}".strip())
    return runnable


def _run(runnable: Any, feeds: list[Array], threads: int) -> tuple[Array, ...]:
    import tvm  # noqa: PLC0415
    from tvm import relax  # noqa: PLC0415

    from qimeng_tvm.hardware import configure_threads  # noqa: PLC0415

    configure_threads(threads)
    machine = relax.VirtualMachine(runnable, tvm.cpu())
    given = [tvm.runtime.tensor(feed) for feed in feeds]
    found = machine["main"](*given)
    outputs = [found] if isinstance(found, tvm.runtime.Tensor) else list(found)
    for feed, tensor in zip(feeds, given, strict=True):
        if not np.array_equal(tensor.numpy(), feed):
            raise ValueError("an input was written to")
    return tuple(output.numpy().copy() for output in outputs)


def _told(error: Exception) -> str:
    """Return the kind of an error and its last lines that say something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' | '.join(lines[-3:])[:600]}"


def _stage(text: str) -> None:
    # If the process dies, this line is in the worker's message.
    print(text, file=sys.stderr, flush=True)
