"""The x86 families: chosen in the right order, in registers on every chip they are for, and right where they run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import tirx  # noqa: E402

from qimeng_tvm.check.audit import audit_text  # noqa: E402
from qimeng_tvm.comparison import compare  # noqa: E402
from qimeng_tvm.hardware import host, load, target_of  # noqa: E402
from qimeng_tvm.hardware.host import llvm_features  # noqa: E402
from qimeng_tvm.hardware.model import Hardware  # noqa: E402
from qimeng_tvm.intrin import GemmShape, IntrinFamily, families, families_for, family  # noqa: E402
from qimeng_tvm.intrin.dot import dot_gemm  # noqa: E402
from qimeng_tvm.intrin.registry import only  # noqa: E402
from qimeng_tvm.numerics import make_inputs, numpy_dtype  # noqa: E402
from qimeng_tvm.operators import prim_func  # noqa: E402
from qimeng_tvm.request import Request, parse  # noqa: E402
from qimeng_tvm.schedule.apply import build_schedule, make_task  # noqa: E402
from qimeng_tvm.schedule.prepack import PACK, Operator, split_prepack  # noqa: E402

TRIPLE = "x86_64-unknown-linux-gnu"
WORDS = {"float32": "f32", "bfloat16": "bf16", "uint8": "u8s8", "int8": "s8s8"}
#: Family -> CPUs to compile for, the first in full, and micro-kernels that must not spill: the largest on every side.
KERNELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "x86.avx2_f32.gemm": (("haswell", "znver3"), ("6x2", "4x3")),
    "x86.avx2_bf16.gemm": (("haswell",), ("5x2",)),
    "x86.avx2_int8.gemm_u8s8": (("haswell",), ("6x2",)),
    "x86.avx2_int8.gemm_s8s8": (("haswell",), ("6x2",)),
    "x86.avx2_int8.gemv_u8s8": (("haswell",), ("4x2",)),
    "x86.avx2_int8.gemv_s8s8": (("haswell",), ("4x2",)),
    "x86.avx512_f32.gemm": (("znver5", "skylake-avx512"), ("14x2", "5x5", "3x9")),
    "x86.avx512_bf16.gemm": (("znver5", "cooperlake", "sapphirerapids"), ("8x3", "14x2")),
    "x86.avx512_vnni_u8s8.gemm": (("znver5", "cascadelake"), ("8x3", "3x9")),
    "x86.avx512_vnni_s8s8.gemm": (("znver5", "cascadelake", "sapphirerapids"), ("12x2", "5x4")),
    "x86.avx512bw_u8s8.gemm": (("skylake-avx512", "icelake-server"), ("6x4", "8x2")),
    "x86.avx512f_bf16.gemm": (("skylake-avx512", "cascadelake"), ("3x6", "8x2")),
    "x86.avxvnni_int8.gemm_u8s8": (("alderlake",), ("6x2", "4x3")),
    "x86.avxvnni_int8.gemm_s8s8": (("alderlake",), ("5x2", "12x1")),
}
X86 = [f for f in families().values() if f.isa == "x86" and not f.lanewise]
HOST = host()


@cache
def machine(cpu: str) -> Hardware:
    """A machine with what LLVM says the CPU has."""
    features = llvm_features(cpu, TRIPLE)
    wide = "avx512f" in features
    bits, registers = (512, 32) if wide else (256, 16)
    return replace(
        load("zen5"), cpu=cpu, triple=TRIPLE, features=features, vector_bits=bits, vector_registers=registers
    )


def scheduled(line: str, hardware: Hardware, **values: int | str) -> tuple[Request, Operator]:
    """Schedule a request with these decisions."""
    request = parse(line)
    _, function = prim_func(request, target_of(hardware, 1))
    # Also one that a machine has something better for.
    with only({str(values["family"])} if "family" in values else ()):
        task = make_task(function, hardware)
        assert task is not None
        return request, split_prepack(build_schedule(task, values).mod["main"])


def assembly(operator: Operator, target: tvm.target.Target) -> str:
    library = tvm.tirx.build(tvm.IRModule({"main": operator.main}), target=target)
    return str(getattr(library, "mod", library).inspect_source("asm"))


def test_the_table_names_every_family() -> None:
    assert {f.key for f in X86} == set(KERNELS)


@pytest.mark.parametrize("one", X86, ids=lambda f: f.key)
def test_the_cpus_have_what_the_family_requires_and_the_kernels_fit(one: IntrinFamily) -> None:
    cpus, kernels = KERNELS[one.key]
    assert all(llvm_features(cpu, TRIPLE).issuperset(one.requires) for cpu in cpus)
    assert all(one.fits(*map(int, kernel.split("x"))) for kernel in kernels)


@pytest.mark.parametrize(
    ("key", "kernel"),
    [
        ("x86.avx512_f32.gemm", "8x4"),
        ("x86.avx512_f32.gemm", "7x4"),
        ("x86.avx512_bf16.gemm", "15x2"),
        ("x86.avx512_vnni_u8s8.gemm", "10x3"),
        ("x86.avx512_vnni_s8s8.gemm", "8x3"),
        ("x86.avx512_vnni_s8s8.gemm", "2x10"),
        ("x86.avxvnni_int8.gemm_u8s8", "7x2"),
        ("x86.avxvnni_int8.gemm_s8s8", "3x3"),
    ],
)
def test_kernels_that_spill_do_not_fit(key: str, kernel: str) -> None:
    assert not family(key).fits(*map(int, kernel.split("x")))


@pytest.mark.parametrize(
    ("cpu", "a", "modules"),
    [
        ("znver5", "float32", "avx512_f32 avx2_f32"),
        ("znver5", "bfloat16", "avx512_bf16 avx2_bf16"),
        ("znver5", "uint8", "avx512_vnni_u8s8 avxvnni_int8"),
        ("znver5", "int8", "avx512_vnni_s8s8 avxvnni_int8"),
        ("cascadelake", "bfloat16", "avx512f_bf16 avx2_bf16"),
        ("skylake-avx512", "uint8", "avx512bw_u8s8 avx2_int8"),
        ("cascadelake", "int8", "avx512_vnni_s8s8 avx2_int8"),
        ("alderlake", "uint8", "avxvnni_int8"),
        ("znver3", "int8", "avx2_int8"),
        ("x86-64", "float32", ""),
    ],
)
def test_the_one_that_does_most_an_instruction_comes_first(cpu: str, a: str, modules: str) -> None:
    b, acc = ("int8", "int32") if a.endswith("int8") else (a, "float32")
    found = families_for("x86", (a, b, acc), llvm_features(cpu, TRIPLE))
    assert [f.module for f in found] == modules.split()


@pytest.mark.parametrize(("key", "kernel"), [(key, kernel) for key, (_, ks) in KERNELS.items() for kernel in ks])
def test_the_inner_loop_is_the_instruction_and_nothing_spills(key: str, kernel: str) -> None:
    one = family(key)
    cpus, kernels = KERNELS[key]
    mr, nv = map(int, kernel.split("x"))
    # Up to 8 rows go to the rule for skinny products, which wants all of them in one tile.
    rows = mr if one.kind.startswith("gemv") else mr * max(2, -(-9 // mr))
    line = f"{WORDS[one.dtypes[0]]} gemm {rows}x{2 * nv * one.lanes}x512 constant B"
    pack_a = "none" if one.storage[0] == one.dtypes[0] else "whole"
    _, operator = scheduled(
        line, machine(cpus[0]), family=key, micro_kernel=kernel, pack_a=pack_a, unroll=2, prefetch="no"
    )
    for cpu in cpus if kernel == kernels[0] else cpus[:1]:
        text = assembly(operator, target_of(machine(cpu), 1))
        report = audit_text(text, "x86", one.mnemonics, max_spills=0)
        assert report.ok and report.depth, (cpu, report.problems, report.inner_loop)
        assert min(report.counts.values()) >= mr * nv, (cpu, report.counts)
        assert ("zmm" in report.widths) == (one.lanes * 32 == 512), (cpu, report.widths)
        assert "qimeng_" not in report.inner_loop, "what is imported is inlined"


@pytest.mark.parametrize(
    "target",
    [
        {"mcpu": "x86-64", "mattr": ["+avx512f", "+avx512bf16"]},
        {"mcpu": "znver5", "mattr": ["-avx512vp2intersect"]},
    ],
    ids=str,
)
def test_imported_code_fits_any_target_with_the_feature(target: dict[str, object]) -> None:
    key = "x86.avx512_bf16.gemm"
    decisions = {"family": key, "micro_kernel": "8x3", "pack_a": "none"}
    _, operator = scheduled("bf16 gemm 16x48x256 constant B", machine("znver5"), **decisions)
    text = assembly(operator, tvm.target.Target({"kind": "llvm", "mtriple": TRIPLE, **target}))
    assert audit_text(text, "x86", ("vdpbf16ps",), max_spills=0).ok
    assert "qimeng_dpbf16ps" not in text


def plain_dot(acc: Any, a: Any, b: Any) -> Any:
    """Four unsigned by signed bytes a lane, in arithmetic that every machine has."""
    lanes = 4

    def const(value: int) -> Any:
        return tirx.Broadcast(tirx.const(value, "int32"), lanes)

    for byte in range(4):
        unsigned = tirx.bitwise_and(tirx.shift_right(a, const(8 * byte)), const(255))
        signed = tirx.shift_right(tirx.shift_left(b, const(24 - 8 * byte)), const(24))
        acc = acc + unsigned * signed
    return acc


@pytest.mark.parametrize("a_dtype", ["uint8", "int8"])
@pytest.mark.parametrize(("mr", "nv"), [(3, 2), (2, 3), (1, 1)])
def test_the_dot_kernel_adds_to_c_and_makes_signed_bytes_unsigned(a_dtype: str, mr: int, nv: int) -> None:
    shape = GemmShape(mr, 4 * nv, 24, a_dtype, "int8", "int32", a_dtype, "int8", 4)
    flip = tirx.Broadcast(tirx.const(-0x7F7F7F80, "int32"), 4) if a_dtype == "int8" else None
    functions = dict(zip(("desc", "impl"), dot_gemm(shape, 4, 2, plain_dot, flip=flip), strict=True))
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    library = tvm.tirx.build(module, target=tvm.target.Target("llvm"))
    rng = np.random.default_rng(3)
    low, high = (0, 255) if a_dtype == "uint8" else (-128, 127)
    for pick in ((low, high), (low,), (high,)):
        a = rng.choice(pick, (mr, 24)).astype(a_dtype)
        b = rng.choice([-128, 127], (6, 4 * nv, 4)).astype("int8")
        c = rng.integers(-1000, 1000, (mr, 4 * nv), dtype="int32")
        expected = c + a.astype("int32") @ b.transpose(0, 2, 1).reshape(24, -1).astype("int32")
        for name in functions:
            out = tvm.runtime.tensor(c)
            library[name](tvm.runtime.tensor(a), tvm.runtime.tensor(b), out)
            np.testing.assert_array_equal(out.numpy(), expected, err_msg=name)


#: Shape and decisions: A in place; all padded, one row too many; K in two calls; one row.
CASES = (
    ("{m}x{n}x64 constant B", {"pack_a": "in place"}),
    ("{m1}x{n1}x67 constant B with bias relu", {"pack_a": "whole", "unroll": 1}),
    ("{m1}x{n1}x150", {"pack_a": "whole", "pack_b": "whole", "kc": 64}),
    ("1x{n1}x52 constant B", {"pack_a": "whole", "micro_kernel": "1x1"}),
)


@pytest.mark.parametrize("one", [f for f in X86 if f.kind.startswith("gemm")], ids=lambda f: f.key)
def test_right_where_it_runs(one: IntrinFamily) -> None:
    lacking = sorted(set(one.requires) - HOST.features)
    if lacking or HOST.isa != "x86":
        pytest.skip(f"this machine lacks {', '.join(lacking) or 'x86'}")
    kernel = KERNELS[one.key][1][0]
    mr, nv = map(int, kernel.split("x"))
    m, n = mr * -(-18 // mr), nv * one.lanes * 2
    for shape, decisions in CASES:
        line = f"{WORDS[one.dtypes[0]]} gemm {shape.format(m=m, n=n, m1=m + 1, n1=n - 3)}"
        values = {"family": one.key, "micro_kernel": kernel, **decisions}
        if values["pack_a"] == "in place":
            values["pack_a"] = "none" if one.storage[0] == one.dtypes[0] else "whole"
        request, operator = scheduled(line, HOST, **values)
        library = tvm.tirx.build(operator.module, target=target_of(HOST, 1))
        for kind in ("normal", "extreme"):
            inputs = make_inputs(request, 7, kind)
            found = compare(request, inputs, ran(request, operator, library, inputs))
            assert found.ok, (line, values, kind, str(found))


def ran(request: Request, operator: Operator, library: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Run on this machine, the output poisoned beforehand."""
    tensors = {name: tvm.runtime.tensor(value) for name, value in inputs.items()}
    if operator.pack is not None:
        wanted = operator.pack.params[-1]
        packed = tvm.runtime.empty([int(x) for x in wanted.shape], str(wanted.dtype))
        library[PACK](tensors["B"], packed)
        tensors["B"] = packed
    dtype = numpy_dtype(request.out_dtype)
    out = tvm.runtime.tensor(np.full(request.out_shape, np.nan if dtype.kind != "i" else -77).astype(dtype))
    library["main"](*(tensors[name] for name in ("A", "B", "bias") if name in tensors), out)
    return np.asarray(out.numpy())
