"""float32 GEMM on AVX-512: vfmadd231ps, 16 lanes, 32 zmm registers.

author: hand
"""

from __future__ import annotations

from tvm import tirx

from qimeng_tvm.intrin import intrin_family

from ..fma import fma_gemm

LANES = 16


@intrin_family(
    isa="x86",
    requires=("avx512f",),
    dtypes=("float32", "float32", "float32"),
    lanes=LANES,
    registers=32,
    mnemonics=("vfmadd132ps|vfmadd213ps|vfmadd231ps",),
    version=2,
)
def gemm(
    mr: int, nv: int, kc: int, ku: int, a_panel: int, c_local: int, ahead: int
) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """C[mr, nv*16] += A[mr, kc] @ B[kc, nv*16]."""
    return fma_gemm(mr, nv, kc, ku, LANES, bool(a_panel), bool(c_local), ahead)
