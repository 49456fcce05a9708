"""The contract of ``schedules/``: a rule is a sketch with named decisions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.hardware.model import Hardware

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.s_tir.schedule import SBlockRV

Value = int | str
Values = Mapping[str, Value]
#: ``choose("kc") -> value``: the only door between a rule and whoever decides.
Choose = Callable[[str], Any]


@dataclass(frozen=True)
class Decision:
    """One named choice of a rule.

    Attributes
    ----------
    name : str
        The field's own word: ``micro_kernel``, ``kc``, ``mc``, ``nc``, ``pack_a``...
    candidates : tuple of int or str
        Legal values in a stable order (a record stores the value, not the index).
    default : int or str
        The analytic choice; must be among the candidates.
    doc : str
        One line: what it decides and its unit.
    """

    name: str
    candidates: tuple[Value, ...]
    default: Value
    doc: str = ""

    def __post_init__(self) -> None:
        if self.default not in self.candidates:
            raise ScheduleError(f"decision {self.name}: default {self.default!r} is not among {self.candidates}")


@dataclass(frozen=True)
class SearchSpace:
    """The decisions of one rule for one block on one machine.

    Attributes
    ----------
    decisions : tuple of Decision
        In the rule's order.
    illegal : callable
        values -> None when they go together, else one line that says why not.
    """

    decisions: tuple[Decision, ...]
    illegal: Callable[[Values], str | None] = field(default=lambda values: None)

    def defaults(self) -> dict[str, Value]:
        """Return the analytic default of every decision."""
        return {d.name: d.default for d in self.decisions}

    def check(self, values: Values) -> None:
        """Raise unless ``values`` names every decision with a legal candidate.

        Raises
        ------
        ScheduleError
            Naming the first decision that is missing, unknown or illegal.
        """
        names = {d.name for d in self.decisions}
        extra = sorted(set(values) - names)
        if extra:
            raise ScheduleError(f"unknown decision {extra[0]!r}; the rule has {', '.join(sorted(names))}")
        for d in self.decisions:
            if d.name not in values:
                raise ScheduleError(f"decision {d.name!r} has no value")
            if values[d.name] not in d.candidates:
                raise ScheduleError(f"decision {d.name}={values[d.name]!r} is not among {list(d.candidates)}")
        reason = self.illegal(values)
        if reason is not None:
            raise ScheduleError(reason)

    def size(self) -> int:
        """Return the number of combinations, legal or not."""
        total = 1
        for d in self.decisions:
            total *= len(d.candidates)
        return total

    def legal_points(self) -> Iterator[dict[str, Value]]:
        """Yield every legal combination (only for spaces known to be small)."""
        names = [d.name for d in self.decisions]
        for combo in product(*(d.candidates for d in self.decisions)):
            values = dict(zip(names, combo, strict=True))
            if self.illegal(values) is None:
                yield values


#: Kinds of functions that multiply and sum.
CONTRACTIONS = ("matmul", "conv2d", "winograd", "depthwise")


@dataclass(frozen=True)
class Window:
    """Which pixels of its input an output pixel of a convolution or a pooling reads; (rows, columns) each.

    Attributes
    ----------
    out : tuple of int
        Extents of the output.
    kernel : tuple of int
        Extents of the window.
    stride, dilation : tuple of int
        Pixels between windows, and between the pixels of a window.
    groups : int
        Of channels, each with filters of its own.
    """

    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        # A record gives lists.
        for name in ("out", "kernel", "stride", "dilation"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class BlockInfo:
    """What a rule needs to know of a function's anchor, the block that most of its work is in.

    Attributes
    ----------
    name : str
        The anchor block's name in the function.
    kind : str
        What the function computes; the reader of that kind (:mod:`qimeng_tvm.schedule.readers`) says what the
        extents mean. ``"matmul"``: a (batched) matrix product.
    batch, m, n, k : int
        Extents; ``batch == 1`` when there is no batch loop. Of a convolution: images, pixels of the output, filters of
        a group, multiply-adds for each output.
    a_dtype, b_dtype, acc_dtype, out_dtype : str
        Operand, accumulator and final output dtypes.
    transpose_a, transpose_b : bool
        A stored (k, m), B stored (n, k).
    batch_a, batch_b : bool
        Whether the operand has the batch axis.
    planes_a, planes_b : bool
        Whether a matrix of the operand lies in one piece: no batch axis is stored between its axes.
    constant_b : bool
        B is a layout-free (compile-time packable) buffer.
    producers, consumers : tuple of str
        Names of the elementwise blocks before and after the anchor, in order.
    threads : int
        Cores the operator may use.
    window : Window, optional
        Of a convolution or a pooling.
    """

    name: str
    kind: str
    batch: int
    m: int
    n: int
    k: int
    a_dtype: str
    b_dtype: str
    acc_dtype: str
    out_dtype: str
    transpose_a: bool = False
    transpose_b: bool = False
    batch_a: bool = False
    batch_b: bool = False
    planes_a: bool = True
    planes_b: bool = True
    constant_b: bool = False
    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    threads: int = 1
    window: Window | None = None

    def __post_init__(self) -> None:
        # A record gives a mapping.
        if isinstance(self.window, Mapping):
            object.__setattr__(self, "window", Window(**self.window))

    @property
    def operator(self) -> str:
        """The operator as records and tables name it: kind, extents, dtypes."""
        w = self.window
        shape = "x".join(str(x) for x in ((self.batch,) if self.batch > 1 else ()) + (self.m, self.n, self.k))
        if w is not None:
            shape += f" {w.kernel[0]}x{w.kernel[1]}" + (f"/{max(w.stride)}" if max(w.stride) > 1 else "")
            shape += f" g{w.groups}" if w.groups > 1 else ""
        return f"{self.kind} {shape} {self.a_dtype} {self.b_dtype} {self.out_dtype}"

    @property
    def contraction(self) -> bool:
        """Whether it multiplies and sums: what a micro-kernel can do."""
        return self.kind in CONTRACTIONS

    @property
    def flops(self) -> int:
        """Multiply-adds counted as two."""
        groups = self.window.groups if self.window is not None else 1
        return 2 * self.batch * groups * self.m * self.n * self.k


class ScheduleRule(ABC):
    """A sketch with named decisions. One rule a file in ``schedules/``."""

    #: Stable name, e.g. ``cpu.gemm``.
    name: str
    #: Raised whenever the same decisions give another schedule.
    version: int = 1
    #: Rules of a higher priority are asked first.
    priority: int = 0

    @abstractmethod
    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Tell whether the rule can schedule this block on this machine."""

    @abstractmethod
    def space(self, block: BlockInfo, hardware: Hardware) -> SearchSpace:
        """Return the named decisions with analytic defaults."""

    def estimate(self, values: Values, info: BlockInfo, hardware: Hardware) -> float:
        """Return a cost of legal decisions, lower is better, that a search may start from; 0 says nothing."""
        return 0.0

    @abstractmethod
    def apply(self, sch: Schedule, block: SBlockRV, choose: Choose, info: BlockInfo, hardware: Hardware) -> None:
        """Transform the schedule. Ask ``choose`` for every decision, never who decides."""
