"""The rules that a model is asked to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qimeng_tvm.errors import UsageError


@dataclass(frozen=True)
class RuleTask:
    """A schedule rule to write.

    Attributes
    ----------
    name, version : str, int
        What it must declare; the name is also its place (``cpu.gemm``: ``schedules/cpu/gemm.py``).
    operator, title : str
        What it is asked for by, and what it is.
    priority : int
        Rules of a higher one are asked first.
    rows : int
        Most rows of C that it serves; 0: any.
    decisions : tuple of str
        Names that its space must have.
    kind : str
        Of the functions that it serves (:class:`~qimeng_tvm.schedule.BlockInfo`).
    tensorized : bool
        It serves nothing that has no micro-kernel. Others may have a decision ``family`` that names one, or none.
    """

    name: str
    version: int
    operator: str
    title: str
    priority: int
    rows: int
    decisions: tuple[str, ...]
    kind: str = "matmul"
    tensorized: bool = True

    @property
    def module(self) -> str:
        """File without its folder and suffix."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def other(self) -> dict[str, str]:
        """What, put in the place of an operator's own, makes one that the rule must leave alone."""
        return {"a_dtype": "float8"} if self.tensorized else {"kind": "unknown"}


def _task(kind: str, title: str, decisions: str, *, tensorized: bool = False, version: int = 2) -> RuleTask:
    """Make a rule of a kind by itself; versions before were written by hand."""
    return RuleTask(f"cpu.{kind}", version, kind, title, 0, 0, tuple(decisions.split()), kind, tensorized)


_PRODUCT = tuple("family micro_kernel kc mc nc order inner_order pack_a pack_b unroll prefetch parallel".split())
_CONV = "family micro_kernel gather copy rows filters order inner_order unroll parallel"
_WINOGRAD = "family micro_kernel copy rows filters order inner_order unroll parallel"
_WINDOW = "tile row_block order taps border parallel"
#: By operator. Two versions of the first two were written by hand.
RULES: Mapping[str, RuleTask] = MappingProxyType(
    {
        "gemm": RuleTask("cpu.gemm", 3, "gemm", "matrix products on CPUs", 0, 0, _PRODUCT),
        "gemv": RuleTask("cpu.gemv", 3, "gemv", "skinny matrix products (M <= 8) on CPUs", 1, 8, _PRODUCT),
        "conv2d": _task("conv2d", "convolutions on CPUs", _CONV, tensorized=True),
        "winograd": _task("winograd", "3x3 convolutions by Winograd's method on CPUs", _WINOGRAD, tensorized=True),
        "depthwise": _task("depthwise", "depthwise convolutions on CPUs", _WINDOW, version=3),
        "pool": _task("pool", "poolings on CPUs", _WINDOW),
        "rowwise": _task("rowwise", "softmax, norms and reductions on CPUs", "threads accumulators together"),
        "elementwise": _task("elementwise", "functions without reductions on CPUs", "threads vectors tile"),
    }
)


def rule_task(operator: str) -> RuleTask:
    """Return the rule for an operator.

    Raises
    ------
    UsageError
        If there is none.
    """
    if operator not in RULES:
        raise UsageError(f"no rule is written for {operator!r}; there are {', '.join(RULES)}")
    return RULES[operator]
