"""int8 x int8 GEMM on AVX-512 VNNI, exact: vpdpbusd, four k an instruction, int32 accumulators.

vpdpbusd multiplies unsigned by signed bytes and does not saturate (vpdpbusds would).

author: hand
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from qimeng_tvm.intrin import GemmShape, intrin_family
from qimeng_tvm.intrin.dot import dot_gemm

LANES = 16
SIGN_BITS = "qimeng_sign_bits_512"
# Opaque to LLVM, which would otherwise flip the sign bits word by word before the broadcast, and loops forever on
# the 512-bit form (LLVM 22).
LLVM = f"""
define <{LANES} x i32> @{SIGN_BITS}() alwaysinline {{
  %r = call <{LANES} x i32> asm "", "=v,0"(<{LANES} x i32> splat (i32 -2139062144)) nounwind willreturn memory(none)
  ret <{LANES} x i32> %r
}}
"""


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
    dtypes=("int8", "int8", "int32"),
    lanes=LANES,
    registers=32,
    # The vector of sign bits, and one to spare: with all 32 in use LLVM spills for some CPUs (8x3).
    scratch=2,
    scratch_columns=1,
    k_pack=4,
    mnemonics=("vpdpbusd",),
    version=2,
)
def gemm(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """s8 x s8: C[mr, nv*16] += A[mr, kc] @ B[kc, nv*16], k in fours, A made unsigned in registers."""
    shape = GemmShape(mr, nv * LANES, kc, "int8", "int8", "int32", "int8", "int8", 4, False, bool(c_local))
    flip = tirx.call_extern(f"int32x{LANES}", SIGN_BITS)
    return dot_gemm(shape, LANES, ku, _dot, ahead=ahead, llvm=LLVM, flip=flip)
