"""A machine as rows for people and as JSON for programs."""

from __future__ import annotations

from typing import Any

from qimeng_tvm.hardware.model import Cache, Hardware
from qimeng_tvm.hardware.tables import CPUINFO_FLAGS


def _bytes(count: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.4g} {unit}"
    return f"{count / 1024:.4g} KiB"


def _cache(cache: Cache) -> str:
    ways = f", {cache.ways}-way" if cache.ways else ""
    shared = f", shared by {cache.shared_by} cores" if cache.shared_by > 1 else ""
    return f"{_bytes(cache.size)}{ways}, {cache.line} B lines{shared}"


def vector_features(hardware: Hardware) -> list[str]:
    """Return the features that families choose instructions by, out of the long list."""
    return sorted(hardware.features & set(CPUINFO_FLAGS.get(hardware.isa, {}))) or sorted(hardware.features)


def describe(hardware: Hardware) -> list[tuple[str, str]]:
    """Return (label, value) rows that tell what the machine is and, where measured, what it can do."""
    smt = f" ({hardware.smt} threads each)" if hardware.smt > 1 else " (no SMT)"
    rows = [
        ("name", hardware.name),
        ("instruction set", f"{hardware.isa}, LLVM CPU {hardware.cpu}, {hardware.triple}"),
        ("cores in use", f"{hardware.cores}{smt}"),
        ("vector registers", f"{hardware.vector_registers} x {hardware.vector_bits} bits"),
        *((f"L{cache.level} cache", _cache(cache)) for cache in hardware.caches),
        ("memory", _bytes(hardware.memory_bytes)),
        ("features", " ".join(vector_features(hardware))),
    ]
    for dtype, one in hardware.peaks.items():
        every = hardware.peaks_all.get(dtype, 0.0)
        unit = "GOP/s" if "int" in dtype else "GFLOP/s"
        rest = f", {every:.0f} on {hardware.cores} cores" if every and hardware.cores > 1 else ""
        rows.append((f"peak {dtype}", f"{one:.0f} {unit} on 1 core{rest}"))
    if not hardware.peaks:
        rows.append(("peak", "not measured"))
    if hardware.read_gbps:
        rest = f", {hardware.read_gbps_all:.1f} on {hardware.cores} cores" if hardware.cores > 1 else ""
        rows.append(("memory read", f"{hardware.read_gbps:.1f} GB/s on 1 core{rest}"))
    if hardware.copy_gbps:
        rows.append(("memory copy", f"{hardware.copy_gbps:.1f} GB/s on 1 core (read + written)"))
    rows.append(("fingerprint", hardware.fingerprint))
    return rows


def to_json(hardware: Hardware) -> dict[str, Any]:
    """Return the machine as JSON-ready values."""
    return {
        "name": hardware.name,
        "isa": hardware.isa,
        "cpu": hardware.cpu,
        "triple": hardware.triple,
        "cores": hardware.cores,
        "smt": hardware.smt,
        "vector_bits": hardware.vector_bits,
        "vector_registers": hardware.vector_registers,
        "caches": [
            {"level": c.level, "size": c.size, "line": c.line, "ways": c.ways, "shared_by": c.shared_by}
            for c in hardware.caches
        ],
        "features": sorted(hardware.features),
        "memory_bytes": hardware.memory_bytes,
        "peaks": dict(hardware.peaks),
        "peaks_all": dict(hardware.peaks_all),
        "copy_gbps": hardware.copy_gbps,
        "read_gbps": hardware.read_gbps,
        "read_gbps_all": hardware.read_gbps_all,
        "fingerprint": hardware.fingerprint,
    }
