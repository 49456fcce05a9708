"""Check a tensorize intrinsic family: its meaning, its numbers under guard pages, its machine code.

The meaning is never taken from the family: its ``desc`` must be, node for node, the trusted one of
:func:`qimeng_tvm.intrin.gemm_desc` (or ``lane_desc``), and the numbers are compared with an oracle in higher precision.
All that may crash (tensorize, LLVM, the code itself) happens in a worker, so that a report always comes back, with a
message for whoever wrote the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qimeng_tvm.check.audit import AuditReport
from qimeng_tvm.check.copies import copy_spec, is_packing, packing_variants
from qimeng_tvm.check.emulator import Emulator
from qimeng_tvm.check.numbers import NumbersReport
from qimeng_tvm.check.tile import IntrinsicSpec
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import CheckError, IntrinError
from qimeng_tvm.hardware import host
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.hardware.target import target_dict
from qimeng_tvm.intrin import GemmShape, IntrinFamily, LaneShape

#: Parameters that a GEMM family may have, and what they are when it has not.
_OPTIONAL = {"a_panel": 0, "c_local": 0, "ku": 1, "ahead": 0}
_NEEDED = ("mr", "nv", "kc")
#: Parameters of a lane-wise family.
_LANEWISE = ("mr", "nv", "step", "in_local")


@dataclass(frozen=True)
class FamilyReport:
    """What the checks of one intrinsic of a family found.

    Attributes
    ----------
    name : str
        Canonical name of the intrinsic.
    numbers : NumbersReport
        Meaning and numbers.
    code : AuditReport or None
        Machine code; None when there is none.
    """

    name: str
    numbers: NumbersReport
    code: AuditReport | None

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return self.numbers.ok and self.code is not None and self.code.ok

    @property
    def problem(self) -> str:
        """What is wrong, empty when nothing is."""
        if not self.numbers.ok:
            return self.numbers.message
        return "; ".join(self.code.problems) if self.code is not None else "no machine code to audit"

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        numbers, code = self.numbers, self.code
        return {
            "name": self.name,
            "ok": self.ok,
            "numbers": {"kind": numbers.kind, "cases": numbers.cases, "error_ratio": numbers.error_ratio},
            "code": None if code is None else {"counts": dict(code.counts), "spills": code.spills, "ok": code.ok},
            "problem": self.problem,
        }


def shape_of(family: IntrinFamily, parameters: Mapping[str, int]) -> GemmShape | LaneShape:
    """Return what the family's declaration and these parameters mean.

    Raises
    ------
    IntrinError
        If parameters are missing, unknown or do not go together.
    """
    if set(parameters) != set(family.parameters):
        wanted, given = ", ".join(family.parameters), ", ".join(parameters)
        raise IntrinError(f"{family.key} takes parameters {wanted}; got {given}")
    if family.lanewise:
        return _lane_shape(family, parameters)
    unknown = set(parameters) - set(_NEEDED) - set(_OPTIONAL)
    missing = set(_NEEDED) - set(parameters)
    if unknown or missing:
        raise IntrinError(
            f"{family.key} is not a GEMM family: it has {', '.join(family.parameters)}; "
            f"it needs {', '.join(_NEEDED)} and may have {', '.join(_OPTIONAL)}"
        )
    p = {**_OPTIONAL, **parameters}
    if min(p[x] for x in (*_NEEDED, "ku")) < 1 or p["kc"] % (family.k_pack * p["ku"]):
        raise IntrinError(f"{family.key}: kc={p['kc']} must be a multiple of k_pack * ku = {family.k_pack * p['ku']}")
    a, b, acc = family.dtypes
    stored = family.storage
    panel, local = bool(p["a_panel"]), bool(p["c_local"])
    return GemmShape(
        p["mr"], p["nv"] * family.lanes, p["kc"], a, b, acc, stored[0], stored[1], family.k_pack, panel, local
    )


def _lane_shape(family: IntrinFamily, p: Mapping[str, int]) -> LaneShape:
    if set(p) != set(_LANEWISE):
        raise IntrinError(f"{family.key} has {', '.join(p)}; a lane-wise family has {', '.join(_LANEWISE)}")
    if min(p["mr"], p["nv"], p["step"]) < 1:
        raise IntrinError(f"{family.key}: mr, nv and step are at least 1")
    local = bool(p["in_local"])
    return LaneShape(p["mr"], p["nv"] * family.lanes, p["step"], *family.dtypes, *family.storage, local)


def check_family(
    worker: Worker,
    family: IntrinFamily,
    parameters: Mapping[str, int] | None = None,
    *,
    hardware: Hardware | None = None,
    timeout: float = 120.0,
) -> NumbersReport:
    """Check the meaning and the numbers of one intrinsic of a family.

    Parameters
    ----------
    worker : Worker
        Where it is compiled and run.
    family : IntrinFamily
        Shipped, or just written.
    parameters : mapping, optional
        Tile parameters; :func:`example_parameters` by default.
    hardware : Hardware, optional
        This machine by default; its features must cover what the family requires.
    timeout : float
        Seconds.

    Raises
    ------
    CheckError
        If the machine cannot run the family, or the worker would not take the job: nothing was found out.
    """
    return examine(worker, family, parameters, hardware=hardware, timeout=timeout).numbers


def examine(
    worker: Worker,
    family: IntrinFamily,
    parameters: Mapping[str, int] | None = None,
    *,
    hardware: Hardware | None = None,
    timeout: float = 120.0,
    max_spills: int | None = None,
) -> FamilyReport:
    """Check one intrinsic of a family in every way; see :func:`check_family`."""
    import tvm  # noqa: PLC0415

    machine = hardware or host()
    lacking = sorted(set(family.requires) - machine.features)
    if lacking or family.isa not in (machine.isa, "generic"):
        raise CheckError(f"{machine.name} cannot run {family.key}: it lacks {', '.join(lacking) or family.isa}")
    values = dict(parameters) if parameters is not None else example_parameters(family)
    shape = None if is_packing(family) else shape_of(family, values)
    name = family.intrin_name(**values)
    try:
        desc, impl = family.build(*(values[p] for p in family.parameters))
    except Exception as error:  # whatever the builder, which is under test, raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = f"building {name} raised {type(error).__name__}: {' '.join(lines[-3:])[-800:]}"
        return FamilyReport(name, NumbersReport("error", text), None)
    if shape is None:
        copy = copy_spec(family, name, values, (desc, impl), target_dict(machine, 1))
        return _run(worker, name, "qimeng_tvm.check.copies:run_copy", copy, timeout)
    pair = tvm.ir.save_json(desc), tvm.ir.save_json(impl)
    return examine_pair(worker, family, values, pair, hardware=machine, timeout=timeout, max_spills=max_spills)


def examine_pair(
    worker: Worker,
    family: IntrinFamily,
    values: Mapping[str, int],
    pair: tuple[str, str],
    *,
    hardware: Hardware,
    timeout: float = 120.0,
    max_spills: int | None = None,
    run: bool = True,
    emulator: Emulator | None = None,
) -> FamilyReport:
    """Check one micro-kernel that was built elsewhere, desc and impl as TVM's JSON; nothing of it is read here.

    Without ``run`` it is compiled for the hardware and audited only; an ``emulator`` runs it in place of this machine.
    """
    name = family.intrin_name(**values)
    spec = replace(spec_of(family, values, pair, hardware, max_spills), run=run, emulator=emulator)
    return _run(worker, name, "qimeng_tvm.check.tile:run_intrinsic", spec, timeout)


def _run(worker: Worker, name: str, function: str, spec: Any, timeout: float) -> FamilyReport:
    outcome = worker.call(function, (spec,), timeout)
    if outcome.kind == "refused":
        raise CheckError(f"{name} could not be checked: {outcome.message}")
    if not outcome.ok:
        return FamilyReport(name, NumbersReport(outcome.kind, outcome.message), None)
    numbers, code = outcome.value
    return FamilyReport(name, numbers, code)


def spec_of(
    family: IntrinFamily,
    values: Mapping[str, int],
    pair: tuple[str, str],
    machine: Hardware,
    max_spills: int | None = None,
) -> IntrinsicSpec:
    """Return what a worker needs of one intrinsic, desc and impl as TVM's JSON."""
    shape = shape_of(family, values)
    # LLVM folds the accumulation of one or two steps into the products; the products must be there.
    folded = isinstance(shape, GemmShape) and shape.kc <= 2 * family.k_pack
    return IntrinsicSpec(
        name=family.intrin_name(**values),
        shape=shape,
        lanes=family.lanes,
        desc=pair[0],
        impl=pair[1],
        target=target_dict(machine, 1),
        mnemonics=family.mnemonics[:1] if folded else family.mnemonics,
        max_spills=max_spills,
    )


def example_parameters(family: IntrinFamily) -> dict[str, int]:
    """Return the parameters of a typical intrinsic of the family: the largest tile, a deep call."""
    return example_variants(family)[0]


def _fitting(family: IntrinFamily) -> list[tuple[int, int]]:
    fitting = [(m, v) for m in range(1, 17) for v in range(1, 9) if family.fits(m, v)]
    if not fitting:
        raise IntrinError(f"{family.key} declares {family.registers} registers, too few for a tile of 1x1")
    return fitting


def big_tile(family: IntrinFamily) -> tuple[int, int]:
    """Return rows and vectors of the tile with most products for each operand that is loaded."""
    return max(_fitting(family), key=lambda t: t[0] * t[1] / (t[0] + t[1]))


def example_variants(family: IntrinFamily) -> tuple[dict[str, int], ...]:
    """Return parameters that exercise every path of a family: tile shapes, depths, unrolling, layouts."""
    if is_packing(family):
        return packing_variants(family)
    fitting, big = _fitting(family), big_tile(family)
    wide = max(fitting, key=lambda t: (t[1] > t[0], t[0] * t[1]))
    row = max((t for t in fitting if t[0] == 1), key=lambda t: t[1])
    if family.lanewise:
        return _lane_variants(big, wide, row)
    p = family.k_pack
    drafts = [
        {"mr": big[0], "nv": big[1], "kc": 64 * p, "ku": 2, "a_panel": 0, "c_local": 1, "ahead": 2},
        {"mr": big[0], "nv": big[1], "kc": 32 * p, "ku": 4, "a_panel": 0, "c_local": 0, "ahead": 0},
        {"mr": wide[0], "nv": wide[1], "kc": 37 * p, "ku": 1, "a_panel": 0, "c_local": 0, "ahead": 2},
        {"mr": row[0], "nv": row[1], "kc": 34 * p, "ku": 2, "a_panel": 0, "c_local": 1, "ahead": 1},
        {"mr": 1, "nv": 1, "kc": 2 * p, "ku": 1, "a_panel": 0, "c_local": 0, "ahead": 0},
    ]
    if "a_panel" in family.parameters:
        drafts += [{**draft, "a_panel": 1} for draft in drafts[1:4]]
    kept = [{name: draft[name] for name in family.parameters} for draft in drafts]
    return tuple(v for i, v in enumerate(kept) if v not in kept[:i])


def _lane_variants(*tiles: tuple[int, int]) -> tuple[dict[str, int], ...]:
    """Tiles with operands in registers and in memory, read pixel by pixel and with a stride; and the smallest one."""
    drafts = [
        {"mr": mr, "nv": nv, "step": 1 + at % 2, "in_local": local}
        for at, (mr, nv) in enumerate(tiles)
        for local in (1, 0)
    ]
    drafts += [{"mr": 2, "nv": 1, "step": 3, "in_local": local} for local in (1, 0)]
    drafts.append({"mr": 1, "nv": 1, "step": 2, "in_local": 0})
    return tuple(v for i, v in enumerate(drafts) if v not in drafts[:i])


def audit_family(
    worker: Worker, family: IntrinFamily, hardware: Hardware | None = None, *, max_spills: int | None = None
) -> list[FamilyReport]:
    """Check a family in every way, for each of its :func:`example_variants`."""
    return [
        examine(worker, family, values, hardware=hardware, max_spills=max_spills) for values in example_variants(family)
    ]
