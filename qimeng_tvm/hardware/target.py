"""Hardware to a TVM target that says exactly what the machine has."""

from __future__ import annotations

from typing import Any

from tvm.target import Target

from qimeng_tvm.errors import HardwareError
from qimeng_tvm.hardware.host import llvm_features
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.hardware.tables import CODEGEN_FEATURES


def target_dict(hardware: Hardware, threads: int | None = None) -> dict[str, Any]:
    """Return the target as TVM's dictionary form.

    ``mattr`` lists the differences between what LLVM takes from the CPU name and what the machine has (a hypervisor
    may hide features): without them LLVM may choose an instruction that ends in SIGILL.
    """
    count = hardware.cores if threads is None else threads
    if count < 1:
        raise HardwareError(f"a target for {count} threads was asked for; at least 1 is needed")
    spec: dict[str, Any] = {"kind": "llvm", "mtriple": hardware.triple, "mcpu": hardware.cpu, "num-cores": count}
    implied, matters = llvm_features(hardware.cpu, hardware.triple), CODEGEN_FEATURES.get(hardware.isa, frozenset())
    changes = [f"+{name}" for name in sorted((hardware.features - implied) & matters)]
    # avx2 without ssse3 in the list still has ssse3: taking that away would take avx2 away, too.
    present = llvm_features("", hardware.triple, [f"+{name}" for name in sorted(hardware.features & matters)])
    changes += [f"-{name}" for name in sorted((implied - present - hardware.features) & matters)]
    if changes:
        spec["mattr"] = changes
    return spec


def target_of(hardware: Hardware, threads: int | None = None) -> Target:
    """Return the TVM target for ``threads`` cores of the machine (all of its cores when not given)."""
    return Target(target_dict(hardware, threads))
