"""A tensorize intrinsic of one's own: what it computes, how, and the checks that it must pass.

In `tensorize_intrins/<isa>/` a file with such a function is found by itself, and rules use it where it fits.
Run: python examples/new_intrinsic.py
"""

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from qimeng_tvm.check.intrinsic import examine, example_variants
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.hardware import host
from qimeng_tvm.intrin import GemmShape, gemm_desc, intrin_family, load, whole

LANES = 4
VECTOR = f"float32x{LANES}"


@intrin_family(
    isa="x86", requires=("fma",), dtypes=("float32", "float32", "float32"), lanes=LANES, registers=16,
    mnemonics=("vfmadd132ps|vfmadd213ps|vfmadd231ps",),
)  # fmt: skip
def gemm(mr: int, nv: int, kc: int) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """C[mr, nv*4] += A[mr, kc] @ B[kc, nv*4], on vectors of 128 bits."""
    nr = nv * LANES
    s = GemmShape(mr, nr, kc, "float32", "float32", "float32", "float32", "float32", 1, False, False)

    def step(a: Any, b: Any, acc: Any, i: Any, j: Any, k: Any) -> Any:
        row = tirx.Broadcast(load(a, s.a_index(i, k)), LANES)
        column, total = b.vload([k, j * LANES], VECTOR), acc.vload([(i * nv + j) * LANES], VECTOR)
        return tirx.call_llvm_pure_intrin(VECTOR, "llvm.fma", row, column, total)

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle, c: T.handle):
        sa, sb, sc = T.int32(), T.int32(), T.int32()
        A = T.match_buffer(a, s.a_shape, "float32", offset_factor=1, strides=s.a_strides(sa))
        B = T.match_buffer(b, (kc, nr), "float32", offset_factor=1, strides=[sb, 1])
        C = T.match_buffer(c, (mr, nr), "float32", offset_factor=1, strides=[sc, 1], scope=s.c_scope)
        with T.sblock("root"):
            T.reads(C[0:mr, 0:nr], whole(A), whole(B))
            T.writes(C[0:mr, 0:nr])
            acc = T.alloc_buffer((mr * nr,), "float32", scope="local")
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    acc[T.ramp((i * nv + j) * LANES, 1, LANES)] = C.vload([i, j * LANES], VECTOR)
            for k in range(kc):
                for i in T.unroll(mr):
                    for j in T.unroll(nv):
                        acc[T.ramp((i * nv + j) * LANES, 1, LANES)] = step(A, B, acc, i, j, k)
            for i in T.unroll(mr):
                for j in T.unroll(nv):
                    C[i, T.ramp(j * LANES, 1, LANES)] = acc.vload([(i * nv + j) * LANES], VECTOR)

    return gemm_desc(s), impl


family = gemm.__qimeng_family__  # type: ignore[attr-defined]
if not host().has(*family.requires):
    raise SystemExit(f"{host().name} has no {', '.join(family.requires)}")
with Worker() as worker:  # confined: a crash of what is checked is an answer
    for parameters in example_variants(family)[:3]:
        report = examine(worker, family, parameters)
        print(f"{report.name}: {'right, no spills' if report.ok else report.problem}")
        if not report.ok:
            raise SystemExit(1)
