"""Detection of the machine this process runs on. Nothing is measured here (see ``peak``)."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm_ffi
from tvm.target import Target, codegen

from qimeng_tvm.errors import HardwareError
from qimeng_tvm.hardware import sysfs
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.hardware.tables import CPUINFO_FLAGS, ISA_OF_ARCH, VECTORS

ROOT = Path("/")


@dataclass(frozen=True)
class LlvmHost:
    """The machine as TVM's LLVM sees it.

    Attributes
    ----------
    cpu, triple : str
        CPU name and target triple.
    flags : Mapping[str, bool]
        Features that LLVM tested on the machine itself (CPUID and the enabled register state, or the kernel's
        list), present or not. Features absent here were not tested: the CPU name implies them.
    """

    cpu: str
    triple: str
    flags: Mapping[str, bool]


def llvm_host() -> LlvmHost:
    """Ask TVM's LLVM what machine this is."""
    tested: Any = tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures", allow_missing=True)
    flags = {} if tested is None else {str(name): bool(on) for name, on in dict(tested()).items()}
    return LlvmHost(str(codegen.llvm_get_system_cpu()), str(codegen.llvm_get_system_triple()), flags)


def llvm_features(cpu: str, triple: str, mattr: Iterable[str] = ()) -> frozenset[str]:
    """Return every LLVM feature that is on for a CPU name ("" for the plainest), after ``+x`` / ``-x`` changes."""
    spec: dict[str, Any] = {"kind": "llvm", "mtriple": triple}
    if cpu:
        spec["mcpu"] = cpu
    if changes := list(mattr):
        spec["mattr"] = changes
    return frozenset(str(feature) for feature in codegen.llvm_get_cpu_features(Target(spec)))


def llvm_cores(triple: str) -> tuple[str, ...]:
    """Return the CPU names that LLVM knows for a target triple."""
    return tuple(str(c) for c in codegen.llvm_get_cpu_archlist(Target({"kind": "llvm", "mtriple": triple})))


def near(name: str, known: Iterable[str]) -> str:
    """Say which known names are like a wrong one; nothing when there are none."""
    found = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f" (near: {', '.join(found)})" if found else ""


def isa_of(triple: str) -> str:
    """Return the folder of ``tensorize_intrins/`` for a target triple."""
    arch = triple.split("-", 1)[0]
    isa = ISA_OF_ARCH.get(arch)
    if isa is None:
        raise HardwareError(f"no instruction set known for {arch!r} (triple {triple}); known: {', '.join(ISA_OF_ARCH)}")
    return isa


def detect_features(llvm: LlvmHost, root: Path = ROOT) -> frozenset[str]:
    """Return the LLVM features this process can really use.

    The CPU name implies a list; a hypervisor or the kernel may hide some of it, and a name LLVM does not know
    (``generic``) implies too little. So: implied, plus what was tested present, less what was tested absent or is
    missing from /proc/cpuinfo. LLVM then drops whatever depended on a hidden feature.
    """
    present = {name for name, on in llvm.flags.items() if on}
    absent = {name for name, on in llvm.flags.items() if not on}
    kernel = sysfs.cpuinfo_flags(root)
    if kernel:  # no list (another kernel, a sandbox): nothing to compare with
        absent |= {name for name, flag in CPUINFO_FLAGS.get(isa_of(llvm.triple), {}).items() if flag not in kernel}
    implied = llvm_features(llvm.cpu, llvm.triple)
    # "-x" comes last: turning on a feature also turns on what it needs, which may be hidden.
    changes = [f"+{name}" for name in sorted(present - implied - absent)]
    changes += [f"-{name}" for name in sorted(absent)]
    return llvm_features(llvm.cpu, llvm.triple, changes) - absent


def detect_vectors(isa: str, features: frozenset[str]) -> tuple[int, int]:
    """Return the widest vector register in bits, and how many of them are visible."""
    for feature, bits, registers in VECTORS.get(isa, ()):
        if feature in features:
            return bits, registers
    raise HardwareError(
        f"no vector unit found for {isa} (looked for {', '.join(row[0] for row in VECTORS.get(isa, ()))})"
    )


def detect_name(root: Path = ROOT) -> str:
    """Return the CPU's marketing name, or "" where the kernel does not give one (ARM)."""
    fields = sysfs.cpuinfo_fields(root)
    return fields.get("model name") or fields.get("uarch") or ""


def allowed_cpus() -> frozenset[int]:
    """Return the logical CPUs that this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))  # macOS has no affinity


def detect_cores(allowed: frozenset[int], root: Path = ROOT) -> int:
    """Return how many physical cores the affinity mask and the CPU quota leave to this process."""
    cores = len({sysfs.core_of(cpu, root) for cpu in allowed})
    quota = sysfs.cpu_quota(root)
    # Rounded down: a thread beyond the quota gets all of them throttled.
    return cores if quota is None else max(1, min(cores, int(quota)))


def host(
    threads: int | None = None,
    *,
    root: Path = ROOT,
    allowed: frozenset[int] | None = None,
    llvm: LlvmHost | None = None,
    sysconf: Callable[[int], int] = sysfs.glibc_sysconf,
) -> Hardware:
    """Detect the machine this process runs on; nothing is measured.

    Parameters
    ----------
    threads : int, optional
        Use at most so many cores.
    root, allowed, llvm, sysconf
        Where the facts come from; tests give their own.

    Raises
    ------
    HardwareError
        If ``threads`` is below 1, or the instruction set is not known.
    """
    if threads is not None and threads < 1:
        raise HardwareError(f"{threads} threads asked for; at least 1 is needed")
    view = llvm_host() if llvm is None else llvm
    usable = allowed_cpus() if allowed is None else allowed
    isa = isa_of(view.triple)
    features = detect_features(view, root)
    bits, registers = detect_vectors(isa, features)
    cores = detect_cores(usable, root)
    return Hardware(
        name=detect_name(root) or view.cpu,
        isa=isa,
        cpu=view.cpu,
        triple=view.triple,
        cores=cores if threads is None else min(threads, cores),
        smt=max(len(sysfs.core_of(cpu, root)) for cpu in usable),
        vector_bits=bits,
        vector_registers=registers,
        caches=sysfs.caches(usable, root, sysconf),
        features=features,
        memory_bytes=sysfs.memory(root),
    )
