"""The contract of ``tensorize_intrins/``: what a family is, and its canonical name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qimeng_tvm.errors import IntrinError

PREFIX = "qimeng"
#: Kind of the families that depthwise convolutions are made of.
LANEWISE = "depthwise"
#: Registers of a lane-wise micro-kernel besides its sums: a vector of A and one of B.
_LANE_OPERANDS = 2
_NAME = re.compile(r"^qimeng\.([a-z0-9]+)\.([a-z0-9_]+)\.([a-z0-9_]+)\.([0-9x]+)@([0-9]+)$")

Builder = Callable[..., tuple[Any, Any]]


@dataclass(frozen=True)
class IntrinFamily:
    """A parameterised tensorize intrinsic: parameters -> (desc, impl) TensorIR pair.

    Attributes
    ----------
    isa, module, kind : str
        Folder, file and function it comes from: ``x86``, ``avx2_f32``, ``gemm``.
    requires : tuple of str
        LLVM features without which its code does not run.
    dtypes : tuple of str
        Operand A, operand B and accumulator.
    storage : tuple of str
        What A and B hold in memory when the micro-kernel reads them (packing may widen them).
    lanes : int
        Accumulator lanes of one vector register (VL); nr = nv * lanes.
    registers : int
        Vector registers its instructions can name.
    scratch : int
        Vector registers it needs beside accumulators, min(mr, nv) operand vectors and one broadcast; of a lane-wise
        family beside accumulators and one vector of either operand.
    scratch_columns : int
        As many again for each of the nv vectors of a row.
    k_pack : int
        Consecutive k of one column that lie together in packed operands (P).
    k_step : int
        k consumed by one multiply-accumulate instruction (``k_pack``, unless narrow operands are widened).
    uops : int
        Vector instructions that one multiply-accumulate of a register takes.
    column_uops : int
        Vector instructions that each vector of B takes after its load, in every k step.
    latency : int
        Cycles from an accumulation to the next one on the same register; 0: those of the machine's multiply-add.
    mnemonics : tuple of str
        Machine instructions the audit must find; any of several spellings is separated by ``|``.
    parameters : tuple of str
        Names of the builder's integer parameters, in the order of the canonical name.
    version : int
        Raised whenever the code that comes out changes.
    build : callable
        The builder itself.
    """

    isa: str
    module: str
    kind: str
    requires: tuple[str, ...]
    dtypes: tuple[str, str, str]
    storage: tuple[str, str]
    lanes: int
    registers: int
    scratch: int
    scratch_columns: int
    k_pack: int
    k_step: int
    uops: int
    column_uops: int
    latency: int
    mnemonics: tuple[str, ...]
    parameters: tuple[str, ...]
    version: int
    build: Builder

    @property
    def key(self) -> str:
        """``isa.module.kind``, unique among families."""
        return f"{self.isa}.{self.module}.{self.kind}"

    @property
    def lanewise(self) -> bool:
        """Whether it multiplies element by element (`LaneShape`); else it is a matrix product's (`GemmShape`)."""
        return self.kind.split("_")[0] == LANEWISE

    def fits(self, mr: int, nv: int) -> bool:
        """Tell whether a micro-kernel of mr rows by nv vectors keeps everything in registers."""
        if self.lanewise:
            return mr * nv + _LANE_OPERANDS + self.scratch <= self.registers
        # With more vectors than rows LLVM keeps one more vector of B in flight (seen as spills in the inner loop).
        streamed = 1 if nv > mr > 1 else 0
        needed = mr * nv + min(mr, nv) + 1 + streamed + self.scratch + nv * self.scratch_columns
        return needed <= self.registers

    def intrin_name(self, **parameters: int) -> str:
        """Return the canonical registered name, e.g. ``qimeng.x86.avx512_bf16.gemm.8x3x256@2``."""
        if set(parameters) != set(self.parameters):
            raise IntrinError(
                f"family {self.key} takes parameters {', '.join(self.parameters)}; got {', '.join(parameters)}"
            )
        values = "x".join(str(parameters[p]) for p in self.parameters)
        return f"{PREFIX}.{self.key}.{values}@{self.version}"


@dataclass(frozen=True)
class IntrinName:
    """A canonical intrinsic name, read back."""

    isa: str
    module: str
    kind: str
    values: tuple[int, ...]
    version: int

    @property
    def key(self) -> str:
        """``isa.module.kind``."""
        return f"{self.isa}.{self.module}.{self.kind}"

    @classmethod
    def parse(cls, name: str) -> IntrinName:
        """Read a canonical name.

        Raises
        ------
        IntrinError
            If ``name`` is not of the form ``qimeng.isa.family.kind.1x2x3@version``.
        """
        match = _NAME.match(name)
        if match is None:
            raise IntrinError(
                f"{name!r} is not an intrinsic name (want qimeng.<isa>.<family>.<kind>.<params>@<version>)"
            )
        isa, module, kind, values, version = match.groups()
        return cls(isa, module, kind, tuple(int(v) for v in values.split("x")), int(version))


def intrin_family(
    *,
    isa: str,
    dtypes: tuple[str, str, str],
    lanes: int,
    registers: int,
    scratch: int = 0,
    scratch_columns: int = 0,
    requires: tuple[str, ...] = (),
    storage: tuple[str, str] | None = None,
    k_pack: int = 1,
    k_step: int | None = None,
    uops: int = 1,
    column_uops: int = 0,
    latency: int = 0,
    mnemonics: tuple[str, ...] = (),
    version: int = 1,
) -> Callable[[Builder], Builder]:
    """Declare a function of integers as an intrinsic family; discovery finds it by this mark."""

    def declare(build: Builder) -> Builder:
        family = IntrinFamily(
            isa=isa,
            module=build.__module__.rsplit(".", 1)[-1],
            kind=build.__name__,
            requires=requires,
            dtypes=dtypes,
            storage=storage or dtypes[:2],
            lanes=lanes,
            registers=registers,
            scratch=scratch,
            scratch_columns=scratch_columns,
            k_pack=k_pack,
            k_step=k_step or k_pack,
            uops=uops,
            column_uops=column_uops,
            latency=latency,
            mnemonics=mnemonics,
            parameters=tuple(inspect.signature(build).parameters),
            version=version,
            build=build,
        )
        build.__qimeng_family__ = family  # type: ignore[attr-defined]
        return build

    return declare
