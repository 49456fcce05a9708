"""What PyTorch's two ways to run a model share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qimeng_tvm.bench.model_peers.base import results_of
from qimeng_tvm.bench.models.case import MODULE, Files
from qimeng_tvm.bench.peers import torchlib
from qimeng_tvm.bench.systems import BenchError

#: Why neither runs one.
QUANTIZED = "a quantized model is an ONNX file, which PyTorch does not read"


def load(files: Files, threads: int) -> tuple[Any, tuple[Any, ...]]:
    """Return the module and its inputs; no gradients from here on."""
    import torch  # noqa: PLC0415 (an extra)

    torch.set_grad_enabled(False)
    torch.set_num_threads(threads)
    if torch.get_num_threads() != threads:
        raise BenchError(f"asked torch for {threads} threads, got {torch.get_num_threads()}")
    module = torch.load(files.folder / MODULE, weights_only=False)  # pickled by this program itself
    return module, tuple(torchlib.tensor(a) for a in files.inputs)


def channels_last(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Return a module and inputs whose images have their channels innermost."""
    import torch  # noqa: PLC0415 (as above)

    layout = torch.channels_last
    return module.to(memory_format=layout), tuple(x.to(memory_format=layout) if x.ndim == 4 else x for x in inputs)


def _array(tensor: Any) -> np.ndarray[Any, Any]:
    return np.asarray(tensor.float().numpy())


#: Turns a module's results into one flat array.
fetch: Callable[[Any], np.ndarray[Any, Any]] = results_of(_array)
