"""What a rule is checked and timed on: an operator that can be built, run and compared with the right answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qimeng_tvm.check.numbers import NumbersReport
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.numerics import make_inputs
from qimeng_tvm.request import Request, describe

if TYPE_CHECKING:
    from tvm import tirx
    from tvm.target import Target

    from qimeng_tvm.schedule.prepack import Operator


class Checked(ABC):
    """An operator with its inputs and its right answer, as plain data: it goes to workers and comes back."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is, for people and for the model."""

    @property
    @abstractmethod
    def cores(self) -> int:
        """Cores that it may use."""

    @property
    def name(self) -> str:
        """The label without its details."""
        return self.label.partition(",")[0]

    @abstractmethod
    def served(self, hardware: Hardware, tensorized: bool) -> bool:
        """Tell whether a machine can run it, with a micro-kernel where rules must name one."""

    @abstractmethod
    def prim_func(self, target: Target) -> tirx.PrimFunc:
        """Return it as the one fused function that the passes make of it."""

    @abstractmethod
    def tensors(self, library: Any, operator: Operator) -> list[Any]:
        """Return TVM tensors to time ``main`` with; what is packed beforehand is packed."""

    @abstractmethod
    def check(self, library: Path, operator: Operator) -> NumbersReport:
        """Run a compiled ``operator`` on adversarial inputs, in guarded buffers: what happens in a worker."""

    @abstractmethod
    def mnemonics(self, intrins: Sequence[str]) -> tuple[str, ...]:
        """Return what the audit must find in its code when it was scheduled with these intrinsics."""


@dataclass(frozen=True)
class Product(Checked):
    """A matrix product.

    Attributes
    ----------
    request : Request
        What is asked for.
    """

    request: Request

    @property
    def label(self) -> str:
        """See :class:`Checked`."""
        return describe(self.request)

    @property
    def cores(self) -> int:
        """See :class:`Checked`."""
        return self.request.threads or 1

    def served(self, hardware: Hardware, tensorized: bool) -> bool:
        """See :class:`Checked`."""
        from qimeng_tvm.intrin import families_for  # noqa: PLC0415 (discovery imports TVM)

        dtypes = (self.request.a_dtype, self.request.b_dtype, self.request.out_dtype)
        return bool(families_for(hardware.isa, dtypes, hardware.features)) and self.cores <= hardware.cores

    def prim_func(self, target: Target) -> tirx.PrimFunc:
        """See :class:`Checked`."""
        from qimeng_tvm.operators import prim_func  # noqa: PLC0415 (imports TVM)

        return prim_func(self.request, target)[1]

    def tensors(self, library: Any, operator: Operator) -> list[Any]:
        """See :class:`Checked`."""
        import tvm  # noqa: PLC0415 (only in a worker)

        from qimeng_tvm.compiler import pack_parameters_of  # noqa: PLC0415
        from qimeng_tvm.schedule.prepack import PACK  # noqa: PLC0415

        inputs = make_inputs(self.request, 0)
        found = [tvm.runtime.tensor(inputs[name]) for name in ("A", "B", "bias") if name in inputs]
        if operator.packs:
            packed = pack_parameters_of(operator)[-1]
            room = tvm.runtime.empty(packed.shape, packed.dtype)
            library[PACK](found[1], room)
            found[1] = room
        return found

    def check(self, library: Path, operator: Operator) -> NumbersReport:
        """See :class:`Checked`."""
        from qimeng_tvm.compiler import pack_parameters_of, parameters_of  # noqa: PLC0415 (imports TVM)
        from qimeng_tvm.verify import OperatorSpec, run_cases  # noqa: PLC0415

        parameters = parameters_of(operator), pack_parameters_of(operator)
        return run_cases(OperatorSpec(str(library), self.request, *parameters))

    def mnemonics(self, intrins: Sequence[str]) -> tuple[str, ...]:
        """See :class:`Checked`."""
        from qimeng_tvm.verify import mnemonics_of  # noqa: PLC0415 (imports TVM)

        return mnemonics_of(intrins, self.request.n, self.request.k)
