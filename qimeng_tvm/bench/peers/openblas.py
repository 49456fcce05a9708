"""OpenBLAS through NumPy: as it comes, and with the core type that is fastest on this machine."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_tvm.bench.data import Inputs, aligned_empty
from qimeng_tvm.bench.systems import BenchError, Offer, Peer, Refusal, Variant
from qimeng_tvm.request import Request

# Core types of OpenBLAS and the feature each needs; one that the machine lacks would end in SIGILL.
_CORE_TYPES: Mapping[str, tuple[str, ...]] = {
    "Haswell": ("avx2", "fma"),
    "Zen": ("avx2", "fma"),
    "SkylakeX": ("avx512f", "avx512dq", "avx512bw", "avx512vl"),
    "Cooperlake": ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_bf16"),
    "SapphireRapids": ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_bf16", "amx_tile"),
}

_TRIAL = """
import time
import numpy as np
from threadpoolctl import threadpool_limits
with threadpool_limits(1, user_api="blas"):
    a = np.random.default_rng(0).random((768, 768), dtype=np.float32)
    c = np.empty_like(a)
    best = 1e9
    for _ in range(12):
        start = time.perf_counter()
        np.matmul(a, a, out=c)
        best = min(best, time.perf_counter() - start)
print(best)
"""


def _cpu_flags() -> frozenset[str]:
    """Feature names of the kernel's list; empty where there is none."""
    listing = Path("/proc/cpuinfo")
    if not listing.exists():
        return frozenset()
    for line in listing.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def _trial_seconds(core_type: str) -> float:
    """Seconds of a 768^3 product in a fresh process; infinite when that process fails."""
    environment = dict(os.environ)
    if core_type:
        environment["OPENBLAS_CORETYPE"] = core_type
    else:
        environment.pop("OPENBLAS_CORETYPE", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return float(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return float("inf")


@functools.cache
def fastest_core_type() -> str:
    """Return the fastest core type here, by a quick trial of each; empty for OpenBLAS's own choice."""
    flags = _cpu_flags()
    candidates = ["", *(name for name, needed in _CORE_TYPES.items() if flags.issuperset(needed))]
    # Two rounds: one alone would let a busy moment decide.
    seconds = {name: min(_trial_seconds(name), _trial_seconds(name)) for name in candidates}
    return min(candidates, key=lambda name: seconds[name])


def set_blas_threads(threads: int) -> str | None:
    """Set NumPy's BLAS threads; return None when that is what is in force, else what is."""
    import threadpoolctl  # noqa: PLC0415 - an extra

    controller = threadpoolctl.ThreadpoolController()
    controller.limit(limits=threads, user_api="blas")
    in_force = {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}
    return None if in_force == {threads} else f"asked for {threads} BLAS threads, got {sorted(in_force)}"


@dataclass(frozen=True)
class NumpyOpenBlas(Peer):
    """``numpy.matmul`` as NumPy's wheel comes."""

    name: str = "numpy_openblas"

    def available(self) -> str | None:
        """See :class:`Peer`."""
        try:
            import threadpoolctl  # noqa: F401, PLC0415
        except ImportError:
            return "threadpoolctl is not installed"
        return None

    def prepare(self, request: Request, inputs: Inputs, threads: int) -> Offer:
        """See :class:`Peer`."""
        if request.a_dtype != "float32":
            return Refusal("NumPy has no BLAS for this type")
        problem = set_blas_threads(threads)
        if problem:
            raise BenchError(problem)
        a, b = inputs.a, inputs.b
        out = aligned_empty((*a.shape[:-1], request.n), np.float32)
        offer = [Variant(lambda: np.matmul(a, b, out=out), label="row-major B", extra=self._extra())]
        if request.constant_b and a.ndim == 2:
            columns = np.asfortranarray(b)  # a known B may lie as the library likes it
            other = aligned_empty(out.shape, np.float32)  # no variant may be saved by another's answer
            offer.append(Variant(lambda: np.matmul(a, columns, out=other), label="column-major B", extra=self._extra()))
        return offer

    def _extra(self) -> dict[str, Any]:
        import threadpoolctl  # noqa: PLC0415

        blas = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "blas"]
        return {"core_type": blas[0].get("architecture", "") if blas else ""}


@dataclass(frozen=True)
class OpenBlasBest(NumpyOpenBlas):
    """The same with the fastest ``OPENBLAS_CORETYPE``, which counts only when the library is loaded."""

    name: str = "openblas_best"

    def environment(self) -> Mapping[str, str]:
        """See :class:`Peer`."""
        core_type = fastest_core_type()
        return {"OPENBLAS_CORETYPE": core_type} if core_type else {}
