"""Facts per instruction set, as data: vector registers, kernel flag names, peak primitives.

A new instruction set is a few rows here (and its folder of families); no code changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

ISA_OF_ARCH: Mapping[str, str] = MappingProxyType(
    {
        "x86_64": "x86",
        "amd64": "x86",
        "i686": "x86",
        "aarch64": "arm",
        "arm64": "arm",
        "armv7l": "arm",
        "riscv64": "riscv",
    }
)

# isa -> rows (LLVM feature, vector bits, architecturally visible vector registers), widest first.
# RISC-V: zvlNb states the guaranteed VLEN; plain v guarantees 128 (RVV 1.0, section 2).
VECTORS: Mapping[str, tuple[tuple[str, int, int], ...]] = MappingProxyType(
    {
        "x86": (("avx512f", 512, 32), ("avx2", 256, 16), ("avx", 256, 16), ("sse2", 128, 16)),
        "arm": (("neon", 128, 32),),
        "riscv": (
            ("zvl1024b", 1024, 32),
            ("zvl512b", 512, 32),
            ("zvl256b", 256, 32),
            ("v", 128, 32),
        ),
    }
)

# isa -> LLVM feature -> flag in /proc/cpuinfo, for the features that families choose instructions by.
# A feature that CPUID shows but the kernel does not list is off for us (clearcpuid=, no XSAVE state, sandbox).
CPUINFO_FLAGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "x86": {
            "avx": "avx",
            "avx2": "avx2",
            "fma": "fma",
            "f16c": "f16c",
            "gfni": "gfni",
            "avxvnni": "avx_vnni",
            "avx512f": "avx512f",
            "avx512bw": "avx512bw",
            "avx512cd": "avx512cd",
            "avx512dq": "avx512dq",
            "avx512vl": "avx512vl",
            "avx512ifma": "avx512ifma",
            "avx512vbmi": "avx512vbmi",
            "avx512vbmi2": "avx512_vbmi2",
            "avx512vnni": "avx512_vnni",
            "avx512bf16": "avx512_bf16",
            "avx512fp16": "avx512_fp16",
            "avx512bitalg": "avx512_bitalg",
            "avx512vpopcntdq": "avx512_vpopcntdq",
            "amx-tile": "amx_tile",
            "amx-int8": "amx_int8",
            "amx-bf16": "amx_bf16",
        },
        "arm": {
            "neon": "asimd",
            "dotprod": "asimddp",
            "fullfp16": "asimdhp",
            "i8mm": "i8mm",
            "bf16": "bf16",
            "sve": "sve",
            "sve2": "sve2",
            "sme": "sme",
        },
    }
)

# Features by which LLVM's choice of instructions changes of itself. Only these are worth a +/- in a target: the rest
# are reached by intrinsics alone (mwaitx, rdpru, ...), or are tuning hints. The base (sse2, neon) is never taken away.
CODEGEN_FEATURES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "x86": frozenset(CPUINFO_FLAGS["x86"])
        | {"sse3", "ssse3", "sse4.1", "sse4.2", "sse4a", "fma4", "xop", "avx512vp2intersect", "avx10.1", "avx10.2"}
        | {"avxifma", "avxneconvert", "avxvnniint8", "avxvnniint16", "amx-fp16", "amx-complex"}
        | {"bmi", "bmi2", "tbm", "lzcnt", "popcnt", "movbe", "adx", "cx16", "sahf", "prfchw"}
        | {"egpr", "ndd", "ppx", "push2pop2", "nf", "zu", "ccmp", "cf"},
        "arm": (frozenset(CPUINFO_FLAGS["arm"]) - {"neon"}) | {"lse", "rcpc", "crc", "fp16fml", "sve2p1", "sme2"},
        "riscv": frozenset(f"zvl{2**power}b" for power in range(5, 17))
        | {"m", "a", "f", "d", "c", "v", "zfh", "zfhmin", "zvfh", "zvfhmin", "zvbb", "zba", "zbb", "zbc", "zbs"}
        | {"zicond", "zve32x", "zve32f", "zve64x", "zve64f", "zve64d"},
    }
)

# isa -> feature -> features that it cannot be without, in LLVM's target description (X86.td), as far as the primitives
# below ask for them.
IMPLIED: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "x86": {
            "avxvnni": ("avx2",),
            "avx512f": ("avx2", "fma"),
            "avx512bw": ("avx512f",),
            "avx512vnni": ("avx512f",),
            "avx512bf16": ("avx512bw",),
        },
    }
)


def with_implied(isa: str, features: Iterable[str]) -> frozenset[str]:
    """Return features and all that they imply."""
    found: set[str] = set()
    left = list(features)
    while left:
        feature = left.pop()
        if feature not in found:
            found.add(feature)
            left += IMPLIED.get(isa, {}).get(feature, ())
    return frozenset(found)


def known_features(isa: str) -> frozenset[str]:
    """Return the LLVM features that are told apart here: what families ask for, and what changes code generation."""
    vectors = {row[0] for row in VECTORS.get(isa, ())}
    return CODEGEN_FEATURES.get(isa, frozenset()) | CPUINFO_FLAGS.get(isa, {}).keys() | vectors


@dataclass(frozen=True)
class Primitive:
    """One way to multiply-accumulate a vector register, for the register-only peak loop.

    Attributes
    ----------
    name : str
        The machine instructions, for people.
    dtype : str
        Operand dtype it is the primitive of.
    isa : str
        Instruction set.
    requires : tuple of str
        LLVM features it needs.
    unless : tuple of str
        LLVM features that make it pointless: each comes with a row that is at least as fast.
    bits : int
        Register width; 0 takes the machine's widest.
    accumulator : str
        dtype of the 32-bit accumulator lanes.
    ops : int
        Operations (a multiply and an add count as two) per accumulator lane.
    ir : str
        LLVM IR of ``@{fn}(acc, a, b)``: ``{n}`` accumulator lanes, ``{h}`` 2n, ``{q}`` 4n; a and b come as
        ``<n x i32>``. Every instruction must depend on ``acc`` or sit in one asm block with it, or LLVM hoists it.
    """

    name: str
    dtype: str
    isa: str
    requires: tuple[str, ...]
    unless: tuple[str, ...]
    bits: int
    accumulator: str
    ops: int
    ir: str

    def lanes(self, vector_bits: int) -> int:
        """Return the 32-bit lanes of one register."""
        return (self.bits or vector_bits) // 32

    def source(self, fn: str, vector_bits: int) -> str:
        """Return the LLVM IR that defines the always-inlined function ``fn``."""
        n = self.lanes(vector_bits)
        return self.ir.replace("{fn}", fn).replace("{n}", str(n)).replace("{h}", str(2 * n)).replace("{q}", str(4 * n))


_FMA = """
declare <{n} x float> @llvm.fma.v{n}f32(<{n} x float>, <{n} x float>, <{n} x float>)
define <{n} x float> @{fn}(<{n} x float> %acc, <{n} x i32> %a, <{n} x i32> %b) alwaysinline {
  %x = bitcast <{n} x i32> %a to <{n} x float>
  %y = bitcast <{n} x i32> %b to <{n} x float>
  %r = call <{n} x float> @llvm.fma.v{n}f32(<{n} x float> %x, <{n} x float> %y, <{n} x float> %acc)
  ret <{n} x float> %r
}
"""
# acc * a + b, not acc + a * b: the product must depend on acc to stay in the loop.
_MUL_ADD = """
define <{n} x float> @{fn}(<{n} x float> %acc, <{n} x i32> %a, <{n} x i32> %b) alwaysinline {
  %x = bitcast <{n} x i32> %a to <{n} x float>
  %y = bitcast <{n} x i32> %b to <{n} x float>
  %p = fmul <{n} x float> %acc, %x
  %r = fadd <{n} x float> %p, %y
  ret <{n} x float> %r
}
"""
_DPBF16 = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @{fn}(<16 x float> %acc, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %acc, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}
"""
_DPBUSD = """
declare <{n} x i32> @llvm.x86.avx512.vpdpbusd.BITS(<{n} x i32>, <{q} x i8>, <{q} x i8>)
define <{n} x i32> @{fn}(<{n} x i32> %acc, <{n} x i32> %a, <{n} x i32> %b) alwaysinline {
  %x = bitcast <{n} x i32> %a to <{q} x i8>
  %y = bitcast <{n} x i32> %b to <{q} x i8>
  %r = call <{n} x i32> @llvm.x86.avx512.vpdpbusd.BITS(<{n} x i32> %acc, <{q} x i8> %x, <{q} x i8> %y)
  ret <{n} x i32> %r
}
"""
# One asm block tied to acc: as separate calls the products are loop-invariant and LLVM moves them out. Without
# willreturn LLVM stores every accumulator on every step (a call that might never return needs memory up to date).
_MADDWD = """
define <{n} x i32> @{fn}(<{n} x i32> %acc, <{n} x i32> %a, <{n} x i32> %b) alwaysinline {
  %s = call { <{n} x i32>, <{n} x i32> } asm "vpmaddwd $3, $2, $1\\0A\\09vpaddd $1, $0, $0",
    "=x,=&x,x,x,0"(<{n} x i32> %a, <{n} x i32> %b, <{n} x i32> %acc) nounwind willreturn memory(none)
  %r = extractvalue { <{n} x i32>, <{n} x i32> } %s, 0
  ret <{n} x i32> %r
}
"""
_MADDUBSW = """
define <{n} x i32> @{fn}(<{n} x i32> %acc, <{n} x i32> %a, <{n} x i32> %b) alwaysinline {
  %s = call { <{n} x i32>, <{n} x i32> } asm
    "vpmaddubsw $3, $2, $1\\0A\\09vpmaddwd $2, $1, $1\\0A\\09vpaddd $1, $0, $0",
    "=x,=&x,x,x,0"(<{n} x i32> %a, <{n} x i32> %b, <{n} x i32> %acc) nounwind willreturn memory(none)
  %r = extractvalue { <{n} x i32>, <{n} x i32> } %s, 0
  ret <{n} x i32> %r
}
"""
_SDOT = """
declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)
define <4 x i32> @{fn}(<4 x i32> %acc, <4 x i32> %a, <4 x i32> %b) alwaysinline {
  %x = bitcast <4 x i32> %a to <16 x i8>
  %y = bitcast <4 x i32> %b to <16 x i8>
  %r = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %acc, <16 x i8> %x, <16 x i8> %y)
  ret <4 x i32> %r
}
"""


def _wide(ir: str, bits: int) -> str:
    """Fill the intrinsic's width; 512-bit asm may also use registers 16 to 31 (constraint ``v``)."""
    filled = ir.replace("BITS", str(bits))
    return filled.replace('"=x,=&x,x,x,0"', '"=v,=&v,v,v,0"') if bits == 512 else filled


# Of the rows that apply to one dtype the fastest counts: which int8 sequence wins differs from chip to chip.
PRIMITIVES: tuple[Primitive, ...] = (
    Primitive("vfmadd231ps", "float32", "x86", ("fma",), (), 0, "float32", 2, _FMA),
    Primitive("mul+add", "float32", "x86", (), ("fma",), 0, "float32", 2, _MUL_ADD),
    Primitive("vdpbf16ps", "bfloat16", "x86", ("avx512bf16",), (), 512, "float32", 4, _DPBF16),
    Primitive("vpdpbusd", "int8", "x86", ("avx512vnni",), (), 512, "int32", 8, _wide(_DPBUSD, 512)),
    Primitive("vpdpbusd", "int8", "x86", ("avxvnni",), ("avx512vnni",), 256, "int32", 8, _wide(_DPBUSD, 256)),
    Primitive("vpmaddwd+vpaddd", "int8", "x86", ("avx512bw",), ("avx512vnni",), 512, "int32", 4, _wide(_MADDWD, 512)),
    Primitive("vpmaddwd+vpaddd", "int8", "x86", ("avx2",), ("avx512bw", "avxvnni"), 256, "int32", 4, _MADDWD),
    Primitive(
        "vpmaddubsw+vpmaddwd+vpaddd",
        "int8",
        "x86",
        ("avx512bw",),
        ("avx512vnni",),
        512,
        "int32",
        8,
        _wide(_MADDUBSW, 512),
    ),
    Primitive(
        "vpmaddubsw+vpmaddwd+vpaddd", "int8", "x86", ("avx2",), ("avx512bw", "avxvnni"), 256, "int32", 8, _MADDUBSW
    ),
    Primitive("fmla", "float32", "arm", ("neon",), (), 0, "float32", 2, _FMA),
    Primitive("sdot", "int8", "arm", ("dotprod",), (), 128, "int32", 8, _SDOT),
    Primitive("vfmacc", "float32", "riscv", ("v",), (), 0, "float32", 2, _FMA),
)
