"""What the systems inside TVM share: the import, the target, the virtual machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qimeng_tvm.bench.model_peers.base import exported, results_of
from qimeng_tvm.bench.models.case import ONNX, PROGRAM, Files
from qimeng_tvm.bench.systems import Variant


def read(files: Files, narrowed: bool = False) -> Any:
    """Return the model as a Relax module, weights as constants; of float32, where a pipeline narrows it itself."""
    from qimeng_tvm.relax.sources import read_model  # noqa: PLC0415 (TVM: slow to import, and only in the child)

    plain = narrowed or files.about["dtype"] == "int8"
    return read_model(exported(files, "onnx", ONNX) if plain else exported(files, "program", PROGRAM))


def host_target(threads: int) -> Any:
    """Set TVM's threads and return this machine as its target."""
    from qimeng_tvm.hardware import configure_threads, host, target_of  # noqa: PLC0415 (as above)

    configure_threads(threads)
    return target_of(host(), threads)


def variant(executable: Any, inputs: Sequence[np.ndarray[Any, Any]], **extra: Any) -> Variant:
    """Return the call of a built model on inputs that are copied to TVM's memory."""
    import tvm  # noqa: PLC0415 (as above)
    from tvm import relax  # noqa: PLC0415 (as above)

    function = relax.VirtualMachine(executable, tvm.cpu())["main"]
    arguments = [tvm.runtime.tensor(array) for array in inputs]
    return Variant(lambda: function(*arguments), results_of(_array), extra=extra)


def _array(tensor: Any) -> np.ndarray[Any, Any]:
    return np.asarray(tensor.numpy())
