"""BLIS, the build on PyPI."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from qimeng_tvm.bench.data import Inputs, aligned_empty
from qimeng_tvm.bench.systems import Offer, Peer, Refusal, Variant
from qimeng_tvm.request import Request


@dataclass(frozen=True)
class Blis(Peer):
    """``blis.py.gemm``, f32; that build has one thread."""

    name: str = "blis"

    def available(self) -> str | None:
        """See :class:`Peer`."""
        return None if importlib.util.find_spec("blis") else "blis is not installed"

    def prepare(self, request: Request, inputs: Inputs, threads: int) -> Offer:
        """See :class:`Peer`."""
        if request.a_dtype != "float32":
            return Refusal("BLIS has no product of this type")
        if threads != 1:
            return Refusal("the PyPI build has one thread")
        from blis.py import gemm  # noqa: PLC0415 - an extra

        out = aligned_empty((*inputs.a.shape[:-1], request.n), np.float32)
        if request.batch == 1:
            a, b = inputs.a, inputs.b
            return Variant(lambda: gemm(a, b, out=out, beta=0.0))
        parts = list(zip(inputs.a, inputs.b, out, strict=True))

        def call() -> np.ndarray[Any, Any]:
            for x, y, z in parts:
                gemm(x, y, out=z, beta=0.0)
            return out

        return Variant(call, label="one product at a time")
