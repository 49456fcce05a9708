"""bfloat16 GEMM on AVX-512 BF16: vdpbf16ps, two k an instruction, float32 accumulators.

TVM rewrites bfloat16 values to integers or float32 before its LLVM code generator sees them, so the
instruction is reached through a small LLVM function that takes 32-bit words and is always inlined. It
names no CPU: TVM compiles it for the target's.

vdpbf16ps rounds each step to nearest even and flushes denormals, whatever the rounding mode says
(Intel SDM, volume 2, VDPBF16PS).

author: hand
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from qimeng_tvm.intrin import GemmShape, intrin_family
from qimeng_tvm.intrin.dot import dot_gemm

LANES = 16
FUNCTION = "qimeng_dpbf16ps_512"
LLVM = f"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @{FUNCTION}(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) alwaysinline {{
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}}
"""


def _dot(acc: Any, a: Any, b: Any) -> Any:
    return tirx.call_extern(f"float32x{LANES}", FUNCTION, acc, a, b)


@intrin_family(
    isa="x86",
    requires=("avx512f", "avx512bf16"),
    dtypes=("bfloat16", "bfloat16", "float32"),
    lanes=LANES,
    registers=32,
    k_pack=2,
    mnemonics=("vdpbf16ps",),
    version=2,
)
def gemm(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """C[mr, nv*16] += A[mr, kc] @ B[kc, nv*16], k in pairs."""
    s = GemmShape(
        mr, nv * LANES, kc, "bfloat16", "bfloat16", "float32", "bfloat16", "bfloat16", 2, False, bool(c_local)
    )
    return dot_gemm(s, LANES, ku, _dot, ahead=ahead, llvm=LLVM)
