"""Stand-ins, in plain LLVM IR, for the instructions that ``qimeng_tvm.intrin.dot`` builds on: mutants run anywhere."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from qimeng_tvm.intrin import GemmShape, intrin_family
from qimeng_tvm.intrin.dot import dot_gemm

LANES = 8
_I, _F = f"<{LANES} x i32>", f"<{LANES} x float>"


def _splat(value: int) -> str:
    return f"splat (i32 {value})"


def _bytes() -> str:
    """C + sum of four unsigned bytes of A times four signed bytes of B: vpdpbusd."""
    lines = [f"define {_I} @qimeng_test_bytes({_I} %c0, {_I} %a, {_I} %b) alwaysinline {{"]
    for p in range(4):
        lines += [
            f"  %as{p} = lshr {_I} %a, {_splat(8 * p)}",
            f"  %au{p} = and {_I} %as{p}, {_splat(255)}",
            f"  %bs{p} = shl {_I} %b, {_splat(24 - 8 * p)}",
            f"  %bi{p} = ashr {_I} %bs{p}, {_splat(24)}",
            f"  %m{p} = mul {_I} %au{p}, %bi{p}",
            f"  %c{p + 1} = add {_I} %c{p}, %m{p}",
        ]
    return "\n".join([*lines, f"  ret {_I} %c4", "}"])


def _halves() -> str:
    """C + sum of two bfloat16 products: vdpbf16ps, but for how it rounds."""
    lines = [f"define {_F} @qimeng_test_halves({_F} %c, {_I} %a, {_I} %b) alwaysinline {{"]
    for x in "ab":
        lines += [
            f"  %{x}l = shl {_I} %{x}, {_splat(16)}",
            f"  %{x}h = and {_I} %{x}, {_splat(-65536)}",
            f"  %{x}0 = bitcast {_I} %{x}l to {_F}",
            f"  %{x}1 = bitcast {_I} %{x}h to {_F}",
        ]
    lines += [f"  %m{i} = fmul {_F} %a{i}, %b{i}" for i in range(2)]
    return "\n".join([*lines, f"  %s = fadd {_F} %c, %m0", f"  %r = fadd {_F} %s, %m1", f"  ret {_F} %r", "}"])


def _multiply_add(kind: str, acc: str) -> Any:
    return lambda c, a, b: tirx.call_extern(f"{acc}x{LANES}", f"qimeng_test_{kind}", c, a, b)


def _shape(dtypes: tuple[str, str, str], mr: int, nv: int, kc: int, c_local: int, k_pack: int) -> GemmShape:
    a, b, acc = dtypes
    return GemmShape(mr, nv * LANES, kc, a, b, acc, a, b, k_pack, False, bool(c_local))


@intrin_family(isa="generic", dtypes=("uint8", "int8", "int32"), lanes=LANES, registers=16, k_pack=4)
def gemm_u8s8(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """As on AVX-512 VNNI."""
    shape = _shape(("uint8", "int8", "int32"), mr, nv, kc, c_local, 4)
    return dot_gemm(shape, LANES, ku, _multiply_add("bytes", "int32"), ahead=ahead, llvm=_bytes())


@intrin_family(isa="generic", dtypes=("int8", "int8", "int32"), lanes=LANES, registers=16, k_pack=4)
def gemm_s8s8(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """As on AVX-512 VNNI, A made unsigned."""
    shape = _shape(("int8", "int8", "int32"), mr, nv, kc, c_local, 4)
    flip = tirx.Broadcast(tirx.const(-2139062144, "int32"), LANES)
    return dot_gemm(shape, LANES, ku, _multiply_add("bytes", "int32"), ahead=ahead, llvm=_bytes(), flip=flip)


@intrin_family(isa="generic", dtypes=("bfloat16", "bfloat16", "float32"), lanes=LANES, registers=16, k_pack=2)
def gemm(mr: int, nv: int, kc: int, ku: int, c_local: int, ahead: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """As on AVX-512 BF16."""
    shape = _shape(("bfloat16", "bfloat16", "float32"), mr, nv, kc, c_local, 2)
    return dot_gemm(shape, LANES, ku, _multiply_add("halves", "float32"), ahead=ahead, llvm=_halves())
