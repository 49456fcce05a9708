"""uint8 x int8 GEMM on AVX-512 VNNI, exact: vpdpbusd, four k an instruction, int32 accumulators.

vpdpbusd multiplies unsigned by signed bytes and does not saturate (vpdpbusds would).

author: hand
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from qimeng_tvm.intrin import GemmShape, intrin_family
from qimeng_tvm.intrin.dot import dot_gemm

LANES = 16


def _dot(acc: Any, a: Any, b: Any) -> Any:
    return tirx.call_llvm_pure_intrin(
        f"int32x{LANES}",
        "llvm.x86.avx512.vpdpbusd.512",
        acc,
        tirx.reinterpret(f"uint8x{4 * LANES}", a),
        tirx.reinterpret(f"int8x{4 * LANES}", b),
    )


@intrin_family(
    isa="x86",
    requires=("avx512f", "avx512vnni"),
    dtypes=("uint8", "int8", "int32"),
    lanes=LANES,
    registers=32,
    k_pack=4,
    mnemonics=("vpdpbusd",),
    version=2,
)
def gemm(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """u8 x s8: C[mr, nv*16] += A[mr, kc] @ B[kc, nv*16], k in fours."""
    shape = GemmShape(mr, nv * LANES, kc, "uint8", "int8", "int32", "uint8", "int8", 4, False, bool(c_local))
    return dot_gemm(shape, LANES, ku, _dot, ahead=ahead)
