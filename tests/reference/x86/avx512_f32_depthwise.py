"""float32 depthwise convolution on AVX-512: vfmadd231ps, 16 lanes, 32 zmm registers.

author: hand
"""

from __future__ import annotations

from tvm import tirx

from qimeng_tvm.intrin import intrin_family

from ..lanes import fma_lanes

LANES = 16


@intrin_family(
    isa="x86",
    requires=("avx512f",),
    dtypes=("float32", "float32", "float32"),
    lanes=LANES,
    registers=32,
    mnemonics=("vfmadd132ps|vfmadd213ps|vfmadd231ps",),
)
def depthwise(mr: int, nv: int, step: int, in_local: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """C[i, c] += A[i * step, c] * B[c], nv * 16 channels."""
    return fma_lanes(mr, nv, step, LANES, bool(in_local))
