"""What became of each function of a model, and why: nothing falls back in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Where a function's schedule came from: a tuning record, the analytic decisions of a rule, or no rule at all.
RECORD, DEFAULT, FALLBACK = "record", "default", "fallback"


@dataclass(frozen=True)
class FunctionReport:
    """One fused function of a model.

    Attributes
    ----------
    name : str
        In the fused module.
    calls : int
        How often one run of the model calls it.
    operator : str
        Kind, extents and dtypes of its anchor; empty when there is none that is understood.
    rule : str
        ``name@version``; empty when none serves it.
    family : str
        The micro-kernel's family; empty when the schedule has none.
    source : str
        ``record``, ``default`` or ``fallback``.
    why : str
        Why it fell back, why a record was not used, or why it is computed by tiles of rows.
    flops : int
        Of one call; multiply-adds counted as two, extents that are not known as one.
    contraction : bool
        Whether it multiplies and sums: what an instruction of the machine's could do.
    tensorized : bool
        Whether it does so by an intrinsic.
    decisions : mapping
        Of the rule.
    callers : tuple of str
        The Relax functions that call it: ``main``, or those that a model with sizes that are not fixed becomes.
    """

    name: str
    calls: int
    operator: str
    rule: str
    family: str
    source: str
    why: str
    flops: int
    contraction: bool
    tensorized: bool
    decisions: dict[str, int | str]
    callers: tuple[str, ...] = ()


@dataclass(frozen=True)
class PipelineReport:
    """What the pipeline did to a model.

    Attributes
    ----------
    functions : tuple of FunctionReport
        In the model's order.
    threads : int
        Cores that the code may use.
    machine : str
        Its name.
    seconds : mapping of str to float
        Wall time of each stage.
    """

    functions: tuple[FunctionReport, ...]
    threads: int
    machine: str
    seconds: dict[str, float]

    @property
    def tensorized(self) -> float:
        """Share of the contractions' flops that are on a tensorized path; 1 when there are none."""
        return _share([f for f in self.functions if f.contraction])

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "tensorized": self.tensorized}


def _share(functions: Sequence[FunctionReport]) -> float:
    total = sum(f.calls * f.flops for f in functions)
    return sum(f.calls * f.flops for f in functions if f.tensorized) / total if total else 1.0
