"""float32 GEMM on AVX2 + FMA: vfmadd231ps, 8 lanes, 16 ymm registers.

author: hand
"""

from __future__ import annotations

from tvm import tirx

from qimeng_tvm.intrin import intrin_family

from ..fma import fma_gemm

LANES = 8


@intrin_family(
    isa="x86",
    requires=("avx2", "fma"),
    dtypes=("float32", "float32", "float32"),
    lanes=LANES,
    registers=16,
    mnemonics=("vfmadd132ps|vfmadd213ps|vfmadd231ps",),
    version=2,
)
def gemm(
    mr: int, nv: int, kc: int, ku: int, a_panel: int, c_local: int, ahead: int
) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """C[mr, nv*8] += A[mr, kc] @ B[kc, nv*8]."""
    return fma_gemm(mr, nv, kc, ku, LANES, bool(a_panel), bool(c_local), ahead)
