"""float32 depthwise convolution on AVX2 + FMA: vfmadd231ps, 8 lanes, 16 ymm registers.

author: hand
"""

from __future__ import annotations

from tvm import tirx

from qimeng_tvm.intrin import intrin_family

from ..lanes import fma_lanes

LANES = 8


@intrin_family(
    isa="x86",
    requires=("avx2", "fma"),
    dtypes=("float32", "float32", "float32"),
    lanes=LANES,
    registers=16,
    mnemonics=("vfmadd132ps|vfmadd213ps|vfmadd231ps",),
)
def depthwise(mr: int, nv: int, step: int, in_local: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """C[i, c] += A[i * step, c] * B[c], nv * 8 channels."""
    return fma_lanes(mr, nv, step, LANES, bool(in_local))
