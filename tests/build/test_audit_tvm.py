"""The audit on what TVM compiles."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from qimeng_tvm.check.assembly import ISAS
from qimeng_tvm.check.audit import audit, audit_text

tvm = pytest.importorskip("tvm")
from tvm.script import tirx as T  # noqa: E402

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for x86 instructions"),
    pytest.mark.skipif(not any(map(shutil.which, ISAS["x86"].disassemblers)), reason="needs objdump or llvm-objdump"),
]
# Compiled, never run: any x86 machine will do.
TARGET = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}
FMA = "vfmadd231ps|vfmadd213ps|vfmadd132ps"


def build(function: Any, folder: Path) -> tuple[Path, str]:
    path = folder / "f.so"
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    library = tvm.compile(module, target=tvm.target.Target(TARGET))
    library.export_library(str(path))
    return path, library.mod.inspect_source("asm")


@T.prim_func(s_tir=True)
def matmul(A: T.Buffer((64, 64), "float32"), B: T.Buffer((64, 64), "float32"), C: T.Buffer((64, 64), "float32")):
    T.func_attr({"tirx.noalias": True})
    for i in T.parallel(64):
        for k in range(64):
            for j in T.vectorized(64):
                with T.sblock("matmul"):
                    vi, vk, vj = T.axis.remap("SRS", [i, k, j])
                    with T.init():
                        C[vi, vj] = T.float32(0)
                    C[vi, vj] = C[vi, vj] + A[vi, vk] * B[vk, vj]


@T.prim_func(s_tir=True)
def exponential(A: T.Buffer((640,), "float32"), B: T.Buffer((640,), "float32")):
    for i in range(640):
        with T.sblock("exp"):
            v = T.axis.spatial(640, i)
            B[v] = T.exp(A[v])


@T.prim_func(s_tir=True)
def library_call(A: T.Buffer((8, 8), "float32"), B: T.Buffer((8, 8), "float32"), C: T.Buffer((8, 8), "float32")):
    with T.sblock("all"):
        T.reads(A[0:8, 0:8], B[0:8, 0:8])
        T.writes(C[0:8, 0:8])
        T.evaluate(T.call_packed("tvm.contrib.cblas.matmul", A.data, B.data, C.data, 0, 0))


def test_own_work_is_clean_by_either_road(tmp_path: Path) -> None:
    path, text = build(matmul, tmp_path)
    final, source = audit(path, (FMA,)), audit_text(text, "x86", (FMA,))
    for report in (final, source):
        assert report.ok and report.counts[FMA] >= 8 and report.depth >= 1 and "ymm" in report.widths, report
    assert (final.counts, final.depth, final.widths) == (source.counts, source.depth, source.widths)
    assert not audit(path, ("vpdpbusd",)).ok


def test_a_library_called_by_name_is_outside(tmp_path: Path) -> None:
    report = audit(build(library_call, tmp_path)[0], ())
    assert not report.ok and report.outside == ("packed function tvm.contrib.cblas.matmul",)


def test_a_scalar_call_in_the_inner_loop_is_a_problem(tmp_path: Path) -> None:
    report = audit(build(exponential, tmp_path)[0], ())
    assert not report.ok and "the hot inner loop calls expf" in report.problems and not report.outside
