"""The machine's measured ceilings: multiply-accumulate rate from registers alone, and memory bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm.script import tirx as T

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.hardware.tables import PRIMITIVES, Primitive
from qimeng_tvm.hardware.target import target_of
from qimeng_tvm.hardware.threads import configure_threads, threads_in_force, use_threads

LOOPS_VERSION = 1  # raise when a loop below changes: cached figures of other versions are measured again

_FN = "qimeng_peak_step"
_STEPS = 1 << 17  # iterations of the register loop: about a millisecond
_REPEATS = 20
_REPEAT_MS = 4  # short and many: the best one is not disturbed by a neighbour
_RETRY_S = 4.0  # how long, in all, to try again while other processes take the cores away
_CLEAN = 0.85  # share of the cores' time that this process must get (a hypervisor takes a few per cent)
_STREAM_REPEATS = 6
_STREAM_MIN, _STREAM_MAX = 32 << 20, 256 << 20

# What LLVM is given so that operands are plausible numbers: 2.0**-32 as float32, bfloat16 pairs, int8 ones.
_OPERAND = {"float32": 0x2F800000, "bfloat16": 0x2F802F80, "int8": 0x01010101}


@dataclass(frozen=True)
class Peaks:
    """Measured ceilings of one machine; fields as in :class:`Hardware`."""

    peaks: Mapping[str, float]
    peaks_all: Mapping[str, float]
    copy_gbps: float
    read_gbps: float
    read_gbps_all: float
    disturbed: bool = False  # the cores were never ours alone: too low, perhaps, and not worth keeping

    def on(self, hardware: Hardware) -> Hardware:
        """Return the machine with these figures filled in."""
        return replace(
            hardware,
            peaks=self.peaks,
            peaks_all=self.peaks_all,
            copy_gbps=self.copy_gbps,
            read_gbps=self.read_gbps,
            read_gbps_all=self.read_gbps_all,
        )


def primitives(hardware: Hardware) -> tuple[Primitive, ...]:
    """Return the rows of the table that this machine can run and that are worth measuring."""
    return tuple(
        p
        for p in PRIMITIVES
        if p.isa == hardware.isa and hardware.has(*p.requires) and hardware.features.isdisjoint(p.unless)
    )


def accumulators(hardware: Hardware) -> int:
    """Return how many independent accumulators hide the latency and still leave registers for operands."""
    return hardware.vector_registers * 3 // 4


def register_loop(primitive: Primitive, vector_bits: int, count: int, threads: int, steps: int = _STEPS) -> Any:
    """Return the PrimFunc that runs ``count`` independent accumulators of a primitive ``steps`` times per thread."""
    lanes = primitive.lanes(vector_bits)
    acc_dtype = primitive.accumulator
    acc_vector, operand_vector = f"{acc_dtype}x{lanes}", f"int32x{lanes}"
    source = primitive.source(_FN, vector_bits)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def main(operands: T.handle, out: T.handle) -> None:
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        X = T.match_buffer(operands, (2 * lanes,), "int32")
        C = T.match_buffer(out, (threads, count * lanes), acc_dtype)
        T.attr(0, "pragma_import_llvm", source)
        for t in T.parallel(threads):
            acc = T.alloc_buffer((count * lanes,), acc_dtype, scope="local")
            for i in T.unroll(count):
                acc[T.ramp(i * lanes, 1, lanes)] = C.vload([t, i * lanes], acc_vector)
            for _k in range(steps):
                for i in T.unroll(count):
                    acc[T.ramp(i * lanes, 1, lanes)] = T.call_extern(
                        acc_vector,
                        _FN,
                        acc.vload([i * lanes], acc_vector),
                        X.vload([0], operand_vector),
                        X.vload([lanes], operand_vector),
                    )
            for i in T.unroll(count):
                C[t, T.ramp(i * lanes, 1, lanes)] = acc.vload([i * lanes], acc_vector)

    return main


def copy_loop(elements: int, lanes: int) -> Any:
    """Return the PrimFunc that copies a float32 buffer; LLVM may make it a call to the C library's ``memcpy``."""
    vector = f"float32x{lanes}"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def main(source: T.handle, target: T.handle) -> None:
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        X = T.match_buffer(source, (elements,), "float32")
        Y = T.match_buffer(target, (elements,), "float32")
        for i in range(elements // lanes):
            Y[T.ramp(i * lanes, 1, lanes)] = X.vload([i * lanes], vector)

    return main


def read_loop(elements: int, lanes: int, count: int, threads: int) -> Any:
    """Return the PrimFunc that adds up a float32 buffer, each thread its own part, in ``count`` accumulators."""
    vector = f"float32x{lanes}"
    step = lanes * count
    part = elements // threads // step  # steps of one thread

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def main(source: T.handle, out: T.handle) -> None:
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        X = T.match_buffer(source, (elements,), "float32")
        C = T.match_buffer(out, (threads, step), "float32")
        for t in T.parallel(threads):
            acc = T.alloc_buffer((step,), "float32", scope="local")
            for i in T.unroll(count):
                acc[T.ramp(i * lanes, 1, lanes)] = T.broadcast(T.float32(0), lanes)
            for k in range(part):
                for i in T.unroll(count):
                    acc[T.ramp(i * lanes, 1, lanes)] = acc.vload([i * lanes], vector) + X.vload(
                        [(t * part + k) * step + i * lanes], vector
                    )
            for i in T.unroll(count):
                C[t, T.ramp(i * lanes, 1, lanes)] = acc.vload([i * lanes], vector)

    return main


def build(func: Any, hardware: Hardware, threads: int = 1) -> Any:
    """Compile a PrimFunc for the machine."""
    return tvm.tirx.build(func, target=target_of(hardware, threads))


def _best_seconds(library: Any, *arguments: Any, repeats: int = _REPEATS) -> float:
    timer = library.time_evaluator("main", tvm.cpu(), number=1, repeat=repeats, min_repeat_ms=_REPEAT_MS)
    return float(min(timer(*arguments).results))


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of many short runs."""
    best = float("inf")
    for _ in range(_REPEATS):
        stop = time.perf_counter() + _REPEAT_MS / 1e3
        while (start := time.perf_counter()) < stop:
            call()
            best = min(best, time.perf_counter() - start)
    return best


def _tensor(array: np.ndarray) -> Any:
    return tvm.runtime.tensor(array)


@dataclass(frozen=True)
class PeakLoop:
    """A compiled register-only loop.

    Attributes
    ----------
    call : callable
        Runs it once, on as many threads as it was made for, which must be in force.
    operations : float
        What one call computes on all threads together; a multiply-add is two.
    """

    call: Callable[[], Any]
    operations: float


def _loop(hardware: Hardware, primitive: Primitive, threads: int) -> PeakLoop:
    lanes, count = primitive.lanes(hardware.vector_bits), accumulators(hardware)
    library = build(register_loop(primitive, hardware.vector_bits, count, threads), hardware, threads)
    operands = _tensor(np.full(2 * lanes, _OPERAND[primitive.dtype], "int32"))
    out = _tensor(np.zeros((threads, count * lanes), primitive.accumulator))
    main = library["main"]
    return PeakLoop(lambda: main(operands, out), float(threads * _STEPS * count * lanes * primitive.ops))


def peak_loop(hardware: Hardware, dtype: str, threads: int) -> PeakLoop | None:
    """Return the loop of the machine's fastest primitive for an operand dtype; None where it has none.

    For timing in turns with an operator: what "100 % of peak" is changes with the clock and the neighbours.
    """
    serving = {dtype, "float32"} if dtype == "bfloat16" else {dtype}
    loops = [_loop(hardware, p, threads) for p in primitives(hardware) if p.dtype in serving]
    if len(loops) < 2:
        return loops[0] if loops else None

    return max(loops, key=lambda loop: loop.operations / _fastest(loop.call))


def primitive_gflops(
    hardware: Hardware, primitive: Primitive, threads: int = 1, deadline: float = 0.0
) -> tuple[float, bool]:
    """Measure one primitive on ``threads`` cores, which must be in force.

    Until ``deadline`` (of ``time.perf_counter``) it tries again as long as other processes take the cores away.

    Returns
    -------
    gflops : float
        The best of many short runs.
    clean : bool
        Whether this process had the cores to itself while that was measured.
    """
    loop = _loop(hardware, primitive, threads)
    best = 0.0
    while True:
        wall, used = time.perf_counter(), time.process_time()
        best = max(best, loop.operations / _fastest(loop.call) / 1e9)
        wall, used = time.perf_counter() - wall, time.process_time() - used
        clean = used >= _CLEAN * threads * wall
        if clean or time.perf_counter() >= deadline:
            return best, clean


def peak_gflops(hardware: Hardware, threads: int = 1, deadline: float = 0.0) -> tuple[dict[str, float], bool]:
    """Measure the peak of every operand dtype that the machine has a primitive for; and whether all was clean."""
    best: dict[str, float] = {}
    all_clean = True
    for primitive in primitives(hardware):
        gflops, clean = primitive_gflops(hardware, primitive, threads, deadline)
        best[primitive.dtype] = max(best.get(primitive.dtype, 0.0), gflops)
        all_clean = all_clean and clean
    # Without an instruction of their own, bfloat16 operands are widened and multiplied as float32.
    if "float32" in best:
        best["bfloat16"] = max(best.get("bfloat16", 0.0), best["float32"])
    return best, all_clean


def stream_bytes(hardware: Hardware) -> int:
    """Return the size of a buffer that no cache holds: four times the last level, within reason and memory."""
    size = min(max(4 * hardware.caches[-1].size, _STREAM_MIN), _STREAM_MAX, hardware.memory_bytes // 8)
    return max(size, 1 << 20) >> 20 << 20


def bandwidth(hardware: Hardware) -> tuple[float, float, float]:
    """Measure copy on one core, read on one core and read on all cores, in GB/s.

    The buffer is filled by one core: on a machine with several memory nodes all cores read from one of them.
    """
    lanes, cores = hardware.vector_bits // 32, hardware.cores
    elements = stream_bytes(hardware) // 4
    # Written before it is read: untouched pages are one shared page of zeros, which stays in cache.
    source, target = _tensor(np.ones(elements, "float32")), _tensor(np.ones(elements, "float32"))
    with use_threads(1):
        seconds = _best_seconds(build(copy_loop(elements, lanes), hardware), source, target, repeats=_STREAM_REPEATS)
    copy = 2 * 4 * elements / seconds / 1e9
    reads = []
    count = 8
    for threads in (1, cores):
        with use_threads(threads, pin=True) as in_force:
            out = _tensor(np.zeros((in_force, lanes * count), "float32"))
            library = build(read_loop(elements, lanes, count, in_force), hardware, in_force)
            covered = elements // in_force // (lanes * count) * (lanes * count) * in_force
            reads.append(4 * covered / _best_seconds(library, source, out, repeats=_STREAM_REPEATS) / 1e9)
    return copy, reads[0], reads[1]


def measure(hardware: Hardware) -> Peaks:
    """Measure everything now, in a few seconds; leaves the threads in force as they were, or at all cores."""
    if threads_in_force() is None:
        configure_threads(hardware.cores)
    deadline = time.perf_counter() + _RETRY_S
    with use_threads(1):
        one, clean = peak_gflops(hardware, 1, deadline)
    full = dict(one)
    if hardware.cores > 1:
        with use_threads(hardware.cores, pin=True) as in_force:
            full, clean_all = peak_gflops(hardware, in_force, deadline)
        scales = all(full[dtype] >= _CLEAN * in_force * one[dtype] for dtype in one)
        # A chip may clock lower with all cores busy, so not to scale is a sign only together with lost time.
        clean = clean and (clean_all or scales) and in_force == hardware.cores
        full = {dtype: max(full[dtype], one[dtype]) for dtype in one}
    copy, read_one, read_all = bandwidth(hardware)
    return Peaks(one, full, copy, read_one, max(read_one, read_all), disturbed=not clean)
