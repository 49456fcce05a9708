"""The instruction audit on small C files, and on assembly text of other machines."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from qimeng_tvm.check.assembly import ISAS, Function, parse_objdump
from qimeng_tvm.check.audit import audit, audit_text, disassemble
from qimeng_tvm.check.elf import read_elf
from qimeng_tvm.check.loops import find_loops
from qimeng_tvm.errors import CheckError

needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None or platform.machine() not in ("x86_64", "AMD64"), reason="needs gcc on x86-64"
)
needs_objdump = pytest.mark.skipif(
    not any(shutil.which(p) for p in ISAS["x86"].disassemblers), reason="needs objdump or llvm-objdump"
)
FMA = "vfmadd231ps|vfmadd213ps|vfmadd132ps"

CLEAN = """
#include <immintrin.h>
void kernel(const float* a, const float* b, float* c, long n) {
  __m256 x = _mm256_setzero_ps(), y = x;
  for (long i = 0; i < n; ++i) {
    __m256 v = _mm256_loadu_ps(a + 8 * i);
    x = _mm256_fmadd_ps(v, _mm256_loadu_ps(b + 16 * i), x);
    y = _mm256_fmadd_ps(v, _mm256_loadu_ps(b + 16 * i + 8), y);
  }
  _mm256_storeu_ps(c, x); _mm256_storeu_ps(c + 8, y);
}
"""

# Twenty-four accumulators in sixteen registers.
SPILLING = """
#include <immintrin.h>
#define EACH(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) \\
  M(12) M(13) M(14) M(15) M(16) M(17) M(18) M(19) M(20) M(21) M(22) M(23)
void kernel(const float* a, const float* b, float* c, long n) {
#define ZERO(i) __m256 x##i = _mm256_setzero_ps();
#define STEP(i) x##i = _mm256_fmadd_ps(_mm256_broadcast_ss(a + 24 * k + i), v, x##i);
#define SAVE(i) _mm256_storeu_ps(c + 8 * i, x##i);
  EACH(ZERO)
  for (long k = 0; k < n; ++k) { __m256 v = _mm256_loadu_ps(b + 8 * k); EACH(STEP) }
  EACH(SAVE)
}
"""

CALLING = """
#include <math.h>
float outside_sgemm(float);
void kernel(const float* a, float* c, long n) {
  for (long i = 0; i < n; ++i) c[i] = outside_sgemm(a[i]) * 2 + expf(a[i]);
}
"""

NESTED = """
#include <immintrin.h>
void kernel(const float* a, const float* b, float* c, long m, long n) {
  for (long j = 0; j < m; ++j) {
    __m256 x = _mm256_loadu_ps(c + 8 * j);
    for (long i = 0; i < n; ++i)
      x = _mm256_fmadd_ps(_mm256_broadcast_ss(a + i), _mm256_loadu_ps(b + 8 * i), x);
    for (long i = 0; i < 3; ++i) { __asm__ volatile("nop"); }
    _mm256_storeu_ps(c + 8 * j, x);
  }
}
"""


def build(source: str, folder: Path, *flags: str, shared: bool = True) -> Path:
    path = folder / ("k.so" if shared else "k.o")
    (folder / "k.c").write_text(source)
    kind = ["-shared"] if shared else ["-c"]
    command = ["gcc", "-O2", "-mavx2", "-mfma", "-fPIC", "-fno-unroll-loops", *flags, *kind]
    subprocess.run([*command, "-o", str(path), str(folder / "k.c"), *(["-lm"] if shared else [])], check=True)
    return path


@needs_gcc
@needs_objdump
@pytest.mark.parametrize("shared", [True, False])
def test_clean_loop(tmp_path: Path, shared: bool) -> None:
    report = audit(build(CLEAN, tmp_path, shared=shared), (FMA,))
    assert report.ok, report.problems
    assert report.counts == {FMA: 2} and report.spills == 0 and report.calls == () and report.outside == ()
    assert (report.function, report.depth) == ("kernel", 1) and "vfmadd" in report.inner_loop
    assert report.widths.keys() == {"ymm"}


@needs_gcc
@needs_objdump
@pytest.mark.parametrize("flags", [(), ("-fno-omit-frame-pointer", "-mstackrealign")], ids=["rsp", "rbp"])
def test_spilling_loop(tmp_path: Path, flags: tuple[str, ...]) -> None:
    path = build(SPILLING, tmp_path, *flags)
    report = audit(path, (FMA,))
    # Eight accumulators or more do not fit; each is read and written every time round.
    assert report.ok and report.counts[FMA] == 24
    assert report.spill_stores >= 8 and report.spill_loads >= 8
    assert not audit(path, (FMA,), max_spills=0).ok
    assert any("spills" in p for p in audit(path, (FMA,), max_spills=0).problems)


@needs_gcc
@needs_objdump
@pytest.mark.parametrize("shared", [True, False])
def test_outside_calls(tmp_path: Path, shared: bool) -> None:
    report = audit(build(CALLING, tmp_path, shared=shared), ())
    assert report.outside == ("symbol outside_sgemm",)
    assert {(c.callee, c.depth, c.hot) for c in report.calls} == {("outside_sgemm", 1, True), ("expf", 1, True)}
    assert not report.ok and any("outside_sgemm" in p for p in report.problems)


@needs_gcc
@needs_objdump
def test_calls_without_a_plt_are_named(tmp_path: Path) -> None:
    report = audit(build(CALLING, tmp_path, "-fno-plt"), ())
    assert {c.callee for c in report.calls} == {"outside_sgemm", "expf"}


@needs_gcc
@needs_objdump
def test_a_linked_library_is_outside(tmp_path: Path) -> None:
    subprocess.run(["gcc", "-shared", "-o", str(tmp_path / "libfast.so"), "-xc", "/dev/null"], check=True)
    (tmp_path / "k.c").write_text(CLEAN)
    library = ["-Wl,--no-as-needed", "-L", str(tmp_path), "-lfast"]
    subprocess.run(
        ["gcc", "-O2", "-mfma", "-fPIC", "-shared", "-o", str(tmp_path / "k.so"), str(tmp_path / "k.c"), *library],
        check=True,
    )
    report = audit(tmp_path / "k.so", (FMA,))
    assert report.outside == ("library libfast.so",) and not report.ok


@needs_gcc
@needs_objdump
def test_the_inner_loop_is_the_one_with_the_work(tmp_path: Path) -> None:
    report = audit(build(NESTED, tmp_path), (FMA,))
    assert report.ok and report.depth == 2 and report.counts[FMA] == 1
    assert "nop" not in report.inner_loop.replace("nopw", "").replace("nopl", "")


@needs_gcc
@needs_objdump
def test_named_mnemonics_must_be_there_and_hot(tmp_path: Path) -> None:
    path = build(CLEAN, tmp_path)
    missing = audit(path, (FMA, "vpdpbusd"))
    assert not missing.ok and missing.counts["vpdpbusd"] == 0 and "nowhere" in missing.problems[0]
    # vzeroupper is behind the loop.
    cold = audit(path, (FMA, "vzeroupper"))
    assert cold.total["vzeroupper"] >= 1 and "not in the hot inner loop" in cold.problems[0]


@needs_gcc
@needs_objdump
def test_both_disassemblers_agree(tmp_path: Path) -> None:
    if shutil.which("objdump") is None or shutil.which("llvm-objdump") is None:
        pytest.skip("needs objdump and llvm-objdump")
    path = build(SPILLING, tmp_path)
    kernels = []
    for program in ("objdump", "llvm-objdump"):
        command = [program, "-d", "-r", "--no-show-raw-insn", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        functions = parse_objdump(text.splitlines(), ISAS["x86"])
        (kernel,) = (f for f in functions if f.name == "kernel")
        loops = [(loop.depth, len(loop.instructions)) for loop in find_loops(kernel)]
        kernels.append((loops, [i.address for i in kernel.instructions][: sum(n for _, n in loops)]))
    assert kernels[0][0][1] == kernels[1][0][1]


@needs_gcc
def test_assembly_text_does_as_well(tmp_path: Path) -> None:
    path = build(SPILLING, tmp_path, shared=True)
    subprocess.run(
        ["gcc", "-O2", "-mavx2", "-mfma", "-S", "-o", str(tmp_path / "k.s"), str(tmp_path / "k.c")], check=True
    )
    text = (tmp_path / "k.s").read_text()
    report = audit(path, (FMA,), assembly=text)
    assert report.counts[FMA] == 24 and report.spill_stores >= 8 and report.function == "kernel"


def x86(body: str) -> Function:
    lines = ["0000000000000000 <f>:", *(f"  {line.strip()}" for line in body.strip().splitlines())]
    (function,) = parse_objdump(lines, ISAS["x86"])
    return function


def test_rbp_as_a_pointer_is_no_stack() -> None:
    text = """
        kernel:
            mov {set}, %rbp
        .L2:
            vmovups (%rbp), %ymm0
            vfmadd231ps 32(%rbp), %ymm0, %ymm1
            {step}
            dec %rcx
            jne .L2
            ret
    """
    array = audit_text(text.format(set="%rdi", step="add $64, %rbp"), "x86", (FMA,))
    assert array.ok and array.spills == 0
    # Even when it once held the stack pointer: it is stepped.
    assert audit_text(text.format(set="%rsp", step="add $64, %rbp"), "x86", (FMA,)).spills == 0
    frame = audit_text(text.format(set="%rsp", step="nop"), "x86", (FMA,))
    assert (frame.spill_loads, frame.spill_stores) == (2, 0)


def test_scalar_stack_traffic_and_other_memory_are_no_spills() -> None:
    report = audit_text(
        """
        kernel:
        .L1:
            movq 8(%rsp), %rax
            movq %rax, 16(%rsp)
            vmovups (%rdi,%rax,4), %zmm3
            vmovaps .LC0(%rip), %zmm4
            vfmadd231ps %zmm3, %zmm4, %zmm5
            vmovups %zmm5, (%rsi)
            jne .L1
            ret
        """,
        "x86",
        (FMA,),
    )
    assert report.ok and report.spills == 0 and report.widths["zmm"] == 6


def test_cold_code_that_jumps_back_is_no_loop() -> None:
    function = x86(
        """
        0: test %rdi,%rdi
        3: je 20 <f+0x20>
        5: vaddps %ymm0,%ymm1,%ymm2
        9: dec %rdi
        c: jne 5 <f+0x5>
        e: ret
        20: xor %eax,%eax
        22: jmp 9 <f+0x9>
        """
    )
    # The edge 22 -> 9 enters the loop's middle: the loop 5..c has two entries then, and 9 does not dominate 22.
    assert [loop.depth for loop in find_loops(function)].count(1) <= 1
    straight = x86("0: jmp 10 <f+0x10>\n5: ret\n10: xor %eax,%eax\n12: jmp 5 <f+0x5>")
    assert [loop.depth for loop in find_loops(straight)] == [0]


def test_private_functions_are_split_off() -> None:
    lines = """
        0000000000000000 <main>:
        0: mov %rsp,%rbp
        3: call 100 <launch>
        8: jmp 20 <main+0x20>
        a: ret
        b: nopl 0x0(%rax,%rax,1)
        10: vmovups (%rbp),%ymm0
        15: add $0x20,%rbp
        19: jne 10 <main+0x10>
        1b: ret
        20: ret
    """.splitlines()
    # A jump over the loop ties it to the function around it ...
    (whole,) = parse_objdump(lines, ISAS["x86"])
    assert [loop.depth for loop in find_loops(whole)] == [0, 1]
    # ... and without one it is a function of its own, with registers of its own.
    apart = [line for line in lines if "jmp" not in line]
    main, loop, _tail = parse_objdump(apart, ISAS["x86"])
    assert (main.name, loop.name) == ("main", "main+0x10")
    assert "%rbp" in main.stack_registers and "%rbp" not in loop.stack_registers
    assert [x.depth for x in find_loops(loop)] == [0, 1]


def test_the_first_name_says_which_loop_is_hot() -> None:
    text = """
kernel:
.L1:
\tvpmaddwd\t(%rdi), %ymm0, %ymm1
\tvpaddd\t%ymm1, %ymm2, %ymm2
\taddq\t$32, %rdi
\tcmpq\t%rsi, %rdi
\tjne\t.L1
.L2:
\tvpaddd\t(%rdx), %ymm2, %ymm3
\tvpaddd\t32(%rdx), %ymm2, %ymm4
\tvpaddd\t64(%rdx), %ymm2, %ymm5
\taddq\t$96, %rdx
\tcmpq\t%rsi, %rdx
\tjne\t.L2
\tretq
"""
    report = audit_text(text, "x86", ("vpmaddwd", "vpaddd"))
    assert report.ok and report.counts == {"vpmaddwd": 1, "vpaddd": 1}, "an epilogue that adds is not the kernel"
    assert audit_text(text, "x86", ("vpaddd",)).counts == {"vpaddd": 3}


@needs_gcc
@needs_objdump
@pytest.mark.parametrize("pointer", ["__TVMBackendAllocWorkspace", "somebody_elses"])
def test_a_call_through_a_pointer_may_be_the_runtime(tmp_path: Path, pointer: str) -> None:
    source = f"""
void* (*{pointer})(long);
void kernel(float* a, long n) {{ for (long i = 0; i < n; ++i) {{ float* p = {pointer}(n); a[i] = a[i] * *p + 1; }} }}
"""
    report = audit(build(source, tmp_path, "-O2", "-mfma"), (FMA.replace("ps", "ss"),))
    assert [c.callee for c in report.calls if c.hot] == ["*"]
    assert report.ok == pointer.startswith("__TVM"), report.problems


def test_prefixed_mnemonics_are_counted() -> None:
    function = x86("0: {vex} vpdpbusd %ymm0,%ymm1,%ymm2\n8: jmp 0 <f>")
    assert function.instructions[0].mnemonic == "vpdpbusd"


ARM = """
kernel:
        stp     x29, x30, [sp, #-16]!
        mov     x29, sp
.LBB0_1:
        ldp     q0, q1, [x1], #32
        ldr     q2, [sp, #64]
        fmla    v3.4s, v0.4s, v2.s[0]
        str     q3, [x29, #-32]
        str     q3, [x2]
        subs    x0, x0, #1
        b.ne    .LBB0_1
        ldp     x29, x30, [sp], #16
        ret
"""

RISCV = """
kernel:
        addi    sp, sp, -64
.LBB0_1:
        vle32.v v8, (a1)
        addi    a4, sp, 16
        vl1r.v  v9, (a4)
        vfmacc.vf       v9, fa0, v8
        vs1r.v  v9, (a4)
        vse32.v v9, (a2)
        addi    a0, a0, -1
        bnez    a0, .LBB0_1
        ret
"""


@pytest.mark.parametrize(("isa", "text", "mnemonic"), [("arm", ARM, "fmla"), ("riscv", RISCV, "vfmacc.vf")])
def test_other_machines(isa: str, text: str, mnemonic: str) -> None:
    report = audit_text(text, isa, (mnemonic,))
    assert report.ok and report.depth == 1 and report.counts == {mnemonic: 1}
    assert (report.spill_loads, report.spill_stores) == (1, 1)


def test_not_a_library(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(b"\x7fELF\x02\x01 cut off")
    (tmp_path / "text").write_text("hello")
    for name, words in (("none.so", "cannot read"), ("text", "not a 64-bit"), ("x.so", "damaged")):
        with pytest.raises(CheckError, match=words):
            audit(tmp_path / name, ())


@needs_gcc
def test_no_disassembler_is_a_plain_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(CLEAN, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CheckError, match="is installed"):
        disassemble(path)


@needs_gcc
def test_elf_facts(tmp_path: Path) -> None:
    elf = read_elf(build(CALLING, tmp_path, "-fno-plt"))
    assert elf.machine == 62 and "outside_sgemm" in elf.undefined and "kernel" in elf.defined
    assert "libm.so.6" in elf.needed and "expf" in elf.slots.values()
