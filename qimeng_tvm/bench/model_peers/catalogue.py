"""The systems by name."""

from __future__ import annotations

from collections.abc import Iterable

from qimeng_tvm.bench.model_peers.base import ModelPeer
from qimeng_tvm.bench.model_peers.iree import Iree
from qimeng_tvm.bench.model_peers.onnxruntime import OnnxRuntimeModel
from qimeng_tvm.bench.model_peers.openvino import OpenVino
from qimeng_tvm.bench.model_peers.torch_compile import TorchCompile
from qimeng_tvm.bench.model_peers.torch_eager import TorchEager
from qimeng_tvm.bench.model_peers.tvm_default import TvmDefaultModel
from qimeng_tvm.bench.model_peers.tvm_static_tuning import TvmStaticTuning
from qimeng_tvm.bench.systems import named


def model_peers(names: Iterable[str] | None = None, trials: int = 0) -> tuple[ModelPeer, ...]:
    """Return the systems that ours is compared with.

    Parameters
    ----------
    names : iterable of str, optional
        Which ones; all but ``tvm_static_tuning`` by default, and that too when ``trials`` is over zero.
    trials : int
        Measured trials a model for ``tvm_static_tuning``.

    Raises
    ------
    UsageError
        If there is none of a name.
    """
    peers: tuple[ModelPeer, ...] = (
        TorchEager(), TorchCompile(), OnnxRuntimeModel(), OpenVino(), Iree(), TvmDefaultModel(),
    )  # fmt: skip
    tuned = TvmStaticTuning(trials=trials)
    if names is None:
        return (*peers, tuned) if trials > 0 else peers
    return named((*peers, tuned), names)
