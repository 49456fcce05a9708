"""Intrinsics of other machines, run by an emulator: QEMU where it is installed, else a command that runs natively."""

import shutil
from dataclasses import replace

import pytest
import tvm
from adversarial.base import GOOD, TASK

from qimeng_tvm.check import emulator as emulators
from qimeng_tvm.check.emulator import Emulator, emulator_for
from qimeng_tvm.check.intrinsic import examine_pair
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import CheckError
from qimeng_tvm.generate.evaluate import machine_for
from qimeng_tvm.generate.sandbox import imported
from qimeng_tvm.generate.tasks import tasks
from qimeng_tvm.generate.verdict import judge
from qimeng_tvm.hardware import host, load
from qimeng_tvm.llm.prompts.render import example

NATIVE = Emulator("this machine", "cc", (("env",),))
VALUES = {"mr": 4, "nv": 2, "kc": 16, "ku": 2, "a_panel": 0, "c_local": 0, "ahead": 0}
native = pytest.mark.skipif(
    not TASK.runs_on(host()) or shutil.which("cc") is None, reason="needs AVX2, FMA and a C compiler"
)


@pytest.fixture(scope="module")
def worker():
    with Worker(preload=("tvm",)) as one:
        yield one


def examined(worker, emulator, *edits):
    source = GOOD
    for old, new in edits:
        assert old in source
        source = source.replace(old, new)
    module = imported(source, f"emulated_{abs(hash(source))}")
    family = module.gemm.__qimeng_family__
    desc, impl = family.build(*(VALUES[p] for p in family.parameters))
    pair = tvm.ir.save_json(desc), tvm.ir.save_json(impl)
    return examine_pair(worker, family, VALUES, pair, hardware=host(), timeout=60, emulator=emulator).numbers


STORE = "C[i, T.ramp(j * LANES, 1, LANES)]"


@native
@pytest.mark.parametrize(
    ("edit", "kinds"),
    [
        (None, {"ok"}),
        (("ko * ku + ki)", "ko * ku)"), {"wrong"}),
        ((STORE, STORE.replace("C[i,", "C[i + 1,")), {"canary", "crash", "wrong"}),
        (("b.vload([k, j * LANES], VEC)", "b.vload([k + 4096, j * LANES], VEC)"), {"crash"}),
        ((STORE, "B[i, T.ramp(j * LANES, 1, LANES)]"), {"input-changed", "wrong"}),
    ],
)  # fmt: skip
def test_the_harness_finds_what_the_native_check_finds(worker, edit, kinds):
    edits = [edit] if edit else []
    report = examined(worker, NATIVE, *edits)
    assert report.kind in kinds, report.message
    assert examined(worker, None, *edits).kind in kinds
    if edit is None:
        assert report.cases >= 5 and 0 < report.error_ratio <= 1 and "under this machine" in report.message


@native
def test_every_command_must_give_the_right_answers(worker):
    report = examined(worker, replace(NATIVE, commands=(("env",), ("false",))))
    assert report.kind == "error" and "exit status 1" in report.message


@native
def test_a_command_that_never_answers_is_given_up(worker, tmp_path):
    program = tmp_path / "sleeps"
    program.write_text("#!/bin/sh\nsleep 1000\n")
    program.chmod(0o755)
    family = imported(GOOD, "emulated_slow").gemm.__qimeng_family__
    pair = tuple(tvm.ir.save_json(f) for f in family.build(*(VALUES[p] for p in family.parameters)))
    slow = Emulator("slow", "cc", ((str(program),),))
    report = examine_pair(worker, family, VALUES, pair, hardware=host(), timeout=5, emulator=slow)
    assert report.numbers.kind == "timeout"


@pytest.mark.parametrize("key", ["arm.neon_f32", "riscv.rvv_f32"])
def test_the_worked_example_runs_where_it_belongs(key):
    """NEON's example is one for its own task; on RISC-V, whose vectors it does not use, the audit says so."""
    task = tasks()[key]
    machine = machine_for(task)
    try:
        emulator_for(machine)
    except CheckError as error:
        pytest.skip(str(error))
    isa = task.isa
    requires = ", ".join(f'"{r}"' for r in task.requires)
    source = (
        example("x86")[1]
        .replace('isa="arm"', f'isa="{isa}"')
        .replace('requires=("neon",)', f"requires=({requires},)")
        .replace("version=1", f"version={task.version}")
        # LLVM keeps some registers for itself on this machine.
        .replace("registers=32,", "registers=32, scratch=4,")
    )
    verdict = judge(f"```python\n{source}\n```", task, machine)
    if isa == "arm":
        assert verdict.ok, (verdict.stage, verdict.findings)
        wrong = source.replace("ko * ku + ki)", "ko * ku)")
        assert judge(f"```python\n{wrong}\n```", task, machine).stage == "numbers"
    else:
        assert verdict.stage in ("declaration", "audit"), (verdict.stage, verdict.findings)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(emulators, "configured", lambda: {})
    monkeypatch.setattr(shutil, "which", lambda program: None if "qemu" in program or "gnu" in program else program)
    with pytest.raises(CheckError, match="aarch64-linux-gnu-gcc, which is not installed: apt-get install gcc-aarch64"):
        emulator_for(machine_for(tasks()["arm.neon_f32"]))
    with pytest.raises(CheckError, match=r"nothing emulates zen5 here: name a command in .*config.toml"):
        emulator_for(load("zen5"))


def test_a_command_of_ones_own_comes_first(monkeypatch, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[emulators]\nx86 = ["env", "-i"]\n')
    monkeypatch.setattr(emulators, "config_path", lambda: path)
    emulators.configured.cache_clear()
    try:
        assert emulator_for(load("zen5")).commands == (("env", "-i"),)
        path.write_text('[emulators]\nx86 = "env"\n')
        emulators.configured.cache_clear()
        with pytest.raises(CheckError, match=r"\[emulators\] holds lines such as"):
            emulator_for(load("zen5"))
    finally:
        emulators.configured.cache_clear()
