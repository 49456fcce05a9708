"""What the peers inside PyTorch share."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from qimeng_tvm.bench.systems import BenchError


def torch_missing() -> str | None:
    """Return why PyTorch cannot be used, or None."""
    try:
        import torch  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return "torch is not installed"
    return None


@functools.cache
def _inference() -> Any:
    """Enter inference mode for the rest of the process: the leanest calls."""
    import torch  # noqa: PLC0415

    mode = torch.inference_mode()
    mode.__enter__()
    return mode


def use_threads(threads: int) -> None:
    """Set PyTorch's threads and make sure of them."""
    import torch  # noqa: PLC0415

    _inference()
    torch.set_num_threads(threads)
    if torch.get_num_threads() != threads:
        raise BenchError(f"asked torch for {threads} threads, got {torch.get_num_threads()}")


def tensor(array: np.ndarray[Any, Any]) -> Any:
    """Copy an array, bfloat16 included, into a tensor of PyTorch's own memory."""
    import torch  # noqa: PLC0415

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).clone()
    return torch.from_numpy(array).clone()


def fetch(result: Any) -> np.ndarray[Any, Any]:
    """Return a tensor as an array; bfloat16 as ``ml_dtypes`` has it."""
    import ml_dtypes  # noqa: PLC0415
    import torch  # noqa: PLC0415

    if result.dtype == torch.bfloat16:
        return np.asarray(result.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(result.numpy())
