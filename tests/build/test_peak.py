"""Peak loops: the code LLVM makes of them, the threads they run on, the figures they give."""

from __future__ import annotations

import os
import re
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from qimeng_tvm import hardware as hw
from qimeng_tvm.errors import HardwareError
from qimeng_tvm.hardware import peak
from qimeng_tvm.hardware.tables import PRIMITIVES, Primitive

A76 = hw.Hardware(
    name="a76",
    isa="arm",
    cpu="cortex-a76",
    triple="aarch64-unknown-linux-gnu",
    cores=4,
    smt=1,
    vector_bits=128,
    vector_registers=32,
    caches=(hw.Cache(1, 64 << 10), hw.Cache(2, 512 << 10)),
    features=frozenset({"neon", "dotprod"}),
    memory_bytes=1 << 30,
)
AVX_VNNI = replace(  # a chip with the 256-bit instruction alone
    hw.load("zen3"), name="alderlake", cpu="alderlake", features=hw.load("zen3").features | {"avxvnni"}
)
AVX512_ONLY = replace(  # AVX-512 before VNNI
    hw.load("cascade_lake"), name="skylake", features=hw.load("cascade_lake").features - {"avx512vnni"}
)
AVX_ONLY = replace(hw.load("zen3"), name="sandybridge", cpu="sandybridge", features=frozenset({"sse2", "avx"}))
CASES = [
    pytest.param(machine, primitive, id=f"{machine.cpu}-{primitive.name}-{primitive.lanes(machine.vector_bits)}")
    for machine in (*(hw.load(name) for name in hw.names()[1:]), A76, AVX_VNNI, AVX512_ONLY, AVX_ONLY)
    for primitive in peak.primitives(machine)
]


def hot_loop(assembly: str, mnemonic: str) -> list[str]:
    """Return the instructions of the backward-jumping block that has the most of ``mnemonic``."""
    lines = [line.strip().removeprefix("{vex}").strip() for line in assembly.splitlines()]
    best: list[str] = []
    for start, line in enumerate(lines):
        label = re.match(r"^(\.LBB\w+):", line)
        if label is None:
            continue
        for end in range(start + 1, len(lines)):
            if re.match(r"^\.LBB\w+:", lines[end]):
                break
            if re.match(rf"^[jb]\S*\s+(\w+, )?{re.escape(label[1])}$", lines[end]):
                body = [text for text in lines[start + 1 : end] if text and text[0] not in ".#/"]
                if sum(text.startswith(mnemonic) for text in body) > sum(text.startswith(mnemonic) for text in best):
                    best = body
    return best


@pytest.mark.parametrize(("machine", "primitive"), CASES)
def test_the_loop_is_the_primitive_and_registers(machine: hw.Hardware, primitive: Primitive) -> None:
    count = peak.accumulators(machine)
    library = peak.build(peak.register_loop(primitive, machine.vector_bits, count, 2), machine, 2)
    for mnemonic in {"mul+add": "vmulps+vaddps"}.get(primitive.name, primitive.name).split("+"):
        body = hot_loop(library.inspect_source("asm"), mnemonic)
        used = [line for line in body if re.split(r"\s", line)[0].startswith(mnemonic[:9])]
        assert used, f"no loop with {mnemonic}"
        assert len(used) % count == 0  # all accumulators, however often LLVM unrolls
        assert not [line for line in body if "(" in line or ("[" in line and "sp" in line)]  # no memory, so no spills


def test_every_row_of_the_table_is_covered() -> None:
    covered = {(machine.isa, primitive.name, primitive.bits) for machine, primitive in (case.values for case in CASES)}
    rows = {
        (row.isa, row.name, row.bits) for row in PRIMITIVES if row.isa != "riscv"
    }  # fixed vectors there: no loop yet
    assert rows <= covered


@pytest.mark.parametrize("primitive", peak.primitives(hw.host()), ids=lambda p: f"{p.name}")
def test_the_loop_does_its_arithmetic(primitive: Primitive) -> None:
    """Three steps from zero give three times one product, in every accumulator of every thread."""
    machine, steps, count = hw.host(), 3, 4
    lanes = primitive.lanes(machine.vector_bits)
    library = peak.build(peak.register_loop(primitive, machine.vector_bits, count, 2, steps), machine, 2)
    small = {"float32": np.float32(2).view("int32"), "bfloat16": np.int32(0x40004000), "int8": np.int32(0x01010101)}
    operands = tvm.runtime.tensor(np.full(2 * lanes, small[primitive.dtype], "int32"))
    out = tvm.runtime.tensor(np.zeros((2, count * lanes), primitive.accumulator))
    library["main"](operands, out)
    one = {
        "vpmaddwd+vpaddd": 2 * 257 * 257,  # the pairs of ones read as 16-bit 257
        "vpmaddubsw+vpmaddwd+vpaddd": 2 * 2 * 257,
    }.get(primitive.name, {"float32": 4, "bfloat16": 8, "int8": 4}[primitive.dtype])
    expected = steps * one if primitive.name != "mul+add" else 14  # ((0 * 2 + 2) * 2 + 2) * 2 + 2
    assert (out.numpy() == expected).all()


def test_figures_are_positive_and_in_order() -> None:
    machine = hw.host()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures = peak.measure(machine)
    assert set(figures.peaks) == set(figures.peaks_all)
    assert all(value > 0 for value in (*figures.peaks.values(), figures.copy_gbps, figures.read_gbps))
    assert figures.read_gbps_all > 0
    assert figures.peaks["bfloat16"] >= figures.peaks["float32"]
    assert all(figures.peaks_all[dtype] >= figures.peaks[dtype] for dtype in figures.peaks)
    if "int8" not in figures.peaks:
        pytest.skip("this machine has no int8 primitive")
    assert figures.peaks["int8"] >= figures.peaks["float32"]


@pytest.mark.parametrize("memory", [1 << 20, 64 << 20, 1 << 40])
def test_the_stream_fits_in_memory_and_not_in_cache(memory: int) -> None:
    machine = replace(hw.load("zen3"), memory_bytes=memory)
    size = peak.stream_bytes(machine)
    assert size % (1 << 20) == 0
    assert 1 << 20 <= size <= 256 << 20
    assert size <= max(memory // 8, 1 << 20)
    if memory == 1 << 40:
        assert size == 4 * machine.caches[-1].size


# --- threads ----------------------------------------------------------------------------------------------------------


@T.prim_func(s_tir=True)
def who(out: T.handle) -> None:
    T.func_attr({"global_symbol": "main"})
    C = T.match_buffer(out, (64,), "uint64")
    for i in T.parallel(64):
        C[i] = T.call_extern("uint64", "pthread_self")


def threads_seen(library: tvm.runtime.Module) -> int:
    out = tvm.runtime.tensor(np.zeros(64, "uint64"))
    library["main"](out)
    return len(set(out.numpy().tolist()))


@pytest.mark.skipif(hw.host().cores < 2, reason="needs two cores")
def test_threads_go_up_and_down_in_one_process() -> None:
    library = tvm.tirx.build(who, target=hw.target_of(hw.host(), 2))
    before = os.sched_getaffinity(0)
    for n in (1, 2, 1, 2):
        assert hw.configure_threads(n) == n
        assert hw.threads_in_force() == n
        assert threads_seen(library) == n
        assert os.sched_getaffinity(0) == before  # TVM binds the caller; that must not stay
    with hw.use_threads(1):
        assert threads_seen(library) == 1
    assert threads_seen(library) == 2
    with hw.use_threads(2, pin=True):
        assert len(os.sched_getaffinity(0)) == 1
        assert threads_seen(library) == 2
    assert os.sched_getaffinity(0) == before
    with hw.use_threads(1, pin=True):
        measuring = os.sched_getaffinity(0)
        assert len(measuring) == 1
    with hw.beside(1):
        assert os.sched_getaffinity(0) and not os.sched_getaffinity(0) & measuring
    with hw.beside(len(before)):
        assert os.sched_getaffinity(0) == before  # no core is left
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(hw.host().cores < 2, reason="needs two cores")
def test_each_python_thread_has_its_own_pool() -> None:
    library = tvm.tirx.build(who, target=hw.target_of(hw.host(), 2))
    hw.configure_threads(1)
    seen: list[int] = []

    def inside() -> None:
        hw.configure_threads(2)
        seen.append(threads_seen(library))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [2]
    assert threads_seen(library) == 1


def test_threads_are_at_least_one_and_at_most_the_cpus() -> None:
    with pytest.raises(HardwareError, match="at least 1"):
        hw.configure_threads(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert hw.configure_threads(100_000) <= len(os.sched_getaffinity(0))
    hw.configure_threads(1)
