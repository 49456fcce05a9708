"""What a machine is, as data: registers, caches, features, measured peak."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


def peak_dtype(a_dtype: str) -> str:
    """Return the key of the measured peak that a product with this operand dtype is held against."""
    return "int8" if a_dtype in ("int8", "uint8") else a_dtype


@dataclass(frozen=True)
class Cache:
    """One level of data (or unified) cache.

    Attributes
    ----------
    level : int
        1, 2 or 3.
    size : int
        Bytes of one instance.
    line : int
        Bytes of a line.
    ways : int
        Associativity; 0 when unknown.
    shared_by : int
        Cores that share one instance.
    """

    level: int
    size: int
    line: int = 64
    ways: int = 8
    shared_by: int = 1


@dataclass(frozen=True)
class Pipeline:
    """What a core does in one cycle; the defaults suit server cores since Haswell and Zen 2.

    Attributes
    ----------
    fma, load : int
        Vector multiply-adds and vector loads started in a cycle.
    vector, issue : int
        Vector instructions, and instructions of any kind, started in a cycle.
    latency : int
        Cycles from an accumulate to the next one on the same register.
    stream : tuple of float
        Bytes a cycle that a micro-kernel gets when it streams an operand from cache level 1, 2, 3
        and from memory.
    run : int
        Longest run of bytes, each from a stream of its own, that several streams from memory may be read in
        before the prefetcher serves only one of them.
    overlap : float
        How much faster memory is read as several such streams than as one.
    fork : int
        Cycles to start and join a parallel loop.
    """

    fma: int = 2
    load: int = 2
    vector: int = 4
    issue: int = 6
    latency: int = 4
    stream: tuple[float, float, float, float] = (64.0, 32.0, 12.0, 6.0)
    run: int = 1024
    overlap: float = 1.45
    fork: int = 12_000


@dataclass(frozen=True)
class Hardware:
    """A machine as rules and families see it.

    Attributes
    ----------
    name : str
        Human name, e.g. ``"AMD EPYC 7B13"``, or the profile's name.
    isa : str
        Folder of ``tensorize_intrins/`` that serves it: ``x86``, ``arm``, ``riscv``, ``cuda``.
    cpu : str
        LLVM CPU name (``-mcpu``).
    triple : str
        LLVM target triple.
    cores : int
        Physical cores this process may use.
    smt : int
        Hardware threads per core.
    vector_bits, vector_registers : int
        Widest vector register in bits and how many of them are architecturally visible.
    caches : tuple of Cache
        Data and unified caches, nearest first.
    features : frozenset of str
        LLVM feature names, e.g. ``avx512bf16``.
    memory_bytes : int
        Memory that this process may use.
    peaks : Mapping[str, float]
        Measured GFLOP/s (GOP/s for integers) of one core, by operand dtype
        (``float32``, ``bfloat16``, ``int8``), register-only loop. Empty when never measured.
    peaks_all : Mapping[str, float]
        The same with all ``cores`` busy at once.
    copy_gbps : float
        Copy bandwidth of one core, GB/s (bytes read plus bytes written); 0 when never measured.
    read_gbps, read_gbps_all : float
        Bandwidth of reading memory once, on one core and on all ``cores`` at once; 0 when never measured.
    pipeline : Pipeline
        Issue widths and stream rates, for analytic decisions.
    emulated_cpu : str
        What QEMU calls the core that has these features and no others; empty: it has none such.
    """

    name: str
    isa: str
    cpu: str
    triple: str
    cores: int
    smt: int
    vector_bits: int
    vector_registers: int
    caches: tuple[Cache, ...]
    features: frozenset[str]
    memory_bytes: int
    peaks: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    peaks_all: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    copy_gbps: float = 0.0
    read_gbps: float = 0.0
    read_gbps_all: float = 0.0
    pipeline: Pipeline = Pipeline()
    emulated_cpu: str = ""

    @staticmethod
    def host(threads: int | None = None) -> Hardware:
        """Detect this machine (nothing is measured); ``threads`` lowers the cores in use."""
        from qimeng_tvm.hardware.host import host  # noqa: PLC0415 (host imports this module)

        return host(threads)

    @staticmethod
    def load(name: str) -> Hardware:
        """Return the machine of a profile, or the detected one for ``"host"``."""
        from qimeng_tvm.hardware.profiles import load  # noqa: PLC0415 (profiles imports this module)

        return load(name)

    def has(self, *features: str) -> bool:
        """Tell whether every one of the LLVM features is present."""
        return self.features.issuperset(features)

    def cache(self, level: int) -> Cache:
        """Return the cache of that level; the next one further out, or nearer, when it is missing."""
        outward = [c for c in self.caches if c.level >= level]
        return outward[0] if outward else self.caches[-1]

    def peak(self, dtype: str, threads: int = 1) -> float:
        """Return measured peak GFLOP/s for an operand dtype on ``threads`` cores; 0 when unknown."""
        one, full = self.peaks.get(dtype, 0.0), self.peaks_all.get(dtype, 0.0)
        if threads <= 1 or self.cores <= 1 or not full:
            return one * max(threads, 1)
        share = min(threads, self.cores)
        return one + (full - one) * (share - 1) / (self.cores - 1)

    @property
    def fingerprint(self) -> str:
        """A short stable hash of everything a record's speed or legality depends on.

        Measured figures stay out: they differ from run to run on one machine.
        """
        facts: dict[str, Any] = {
            "isa": self.isa,
            "cpu": self.cpu,
            "triple": self.triple,
            "vector_bits": self.vector_bits,
            "vector_registers": self.vector_registers,
            "caches": [(c.level, c.size, c.line, c.ways) for c in self.caches],
            "features": sorted(self.features),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
