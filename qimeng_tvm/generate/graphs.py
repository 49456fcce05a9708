"""Operators of any kind that rules are checked on: a few Relax operators that the passes fuse into one function."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qimeng_tvm.check.buffers import numpy_dtype
from qimeng_tvm.check.numbers import Argument, Case, NumbersReport, check_function, load_private
from qimeng_tvm.errors import CheckError
from qimeng_tvm.generate.checked import Checked
from qimeng_tvm.generate.graph_steps import STEPS, Array, Known
from qimeng_tvm.hardware.model import Hardware

if TYPE_CHECKING:
    from tvm import IRModule, tirx
    from tvm.target import Target

    from qimeng_tvm.schedule.prepack import Operator

#: Kinds of inputs, and a seed each. Negative ones tell a border of zeros from one that a maximum does not see.
KINDS = (("normal", 0), ("extreme", 1), ("negative", 2), ("small", 3))
#: Bits by which extreme numbers differ in size.
_SPREAD = 8
#: What cores do to each other shows in some runs only: checks of a case, or seconds after which no more are begun.
_RACES, _RACE_SECONDS = 12, 1.0


@dataclass(frozen=True)
class Given:
    """A tensor that a graph is given.

    Attributes
    ----------
    name, shape, dtype : str, tuple of int, str
        Its name is unique.
    constant : bool
        It is known at compile time; such come last.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    constant: bool = False


@dataclass(frozen=True)
class Step:
    """One operator of a graph.

    Attributes
    ----------
    op : str
        A name of :data:`~qimeng_tvm.generate.graph_steps.STEPS`.
    reads : tuple of str
        Names of tensors given, ``""`` for what the step before made.
    attributes : tuple
        Pairs of a name and a value.
    """

    op: str
    reads: tuple[str, ...] = ("",)
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Graph(Checked):
    """A chain of operators; the last one's result is its own.

    Attributes
    ----------
    title : str
        What it is, in a few words.
    given : tuple of Given
        Its tensors.
    steps : tuple of Step
        In order.
    threads : int
        Cores it may use.
    """

    title: str
    given: tuple[Given, ...]
    steps: tuple[Step, ...]
    threads: int = 1

    @property
    def label(self) -> str:
        """See :class:`~qimeng_tvm.generate.checked.Checked`."""
        more = [step.op for step in self.steps[1:]]
        threads = f"on {self.threads} cores" if self.threads > 1 else ""
        return " ".join(part for part in (self.title, " ".join(["then", *more]) if more else "", threads) if part)

    @property
    def name(self) -> str:
        """See :class:`~qimeng_tvm.generate.checked.Checked`; all of it tells one operator from the other."""
        return self.label

    @property
    def cores(self) -> int:
        """See :class:`~qimeng_tvm.generate.checked.Checked`."""
        return self.threads

    def served(self, hardware: Hardware, tensorized: bool) -> bool:
        """See :class:`~qimeng_tvm.generate.checked.Checked`."""
        if self.threads > hardware.cores or not tensorized:
            return self.threads <= hardware.cores
        from qimeng_tvm.intrin import families_for  # noqa: PLC0415 (discovery imports TVM)

        pixels, filters = (g.dtype for g in self._operands())
        accumulate = "float32" if pixels in ("float32", "bfloat16") else "int32"
        return bool(families_for(hardware.isa, (pixels, filters, accumulate), hardware.features))

    def _operands(self) -> tuple[Given, Given]:
        """What the first step multiplies."""
        a, b = self.steps[0].reads
        by_name = {g.name: g for g in self.given}
        return by_name[a], by_name[b]

    def module(self) -> IRModule:
        """Return the graph as a Relax module of one function."""
        from tvm import relax  # noqa: PLC0415 (only in workers)
        from tvm.script import relax as R  # noqa: PLC0415

        variables = {g.name: relax.Var(g.name, R.Tensor(g.shape, g.dtype)) for g in self.given}
        fed = sum(not g.constant for g in self.given)
        builder = relax.BlockBuilder()
        attrs = {"num_input": fed} if fed < len(self.given) else None
        with builder.function("main", list(variables.values()), attrs=attrs):
            with builder.dataflow():
                value: Any = None
                for step in self.steps:
                    operands = [variables[name] if name else value for name in step.reads]
                    value = builder.emit(STEPS[step.op].relax(relax.op, operands, dict(step.attributes)))
                result = builder.emit_output(value)
            builder.emit_func_output(result)
        return builder.finalize()

    def prim_func(self, target: Target) -> tirx.PrimFunc:
        """See :class:`~qimeng_tvm.generate.checked.Checked`."""
        from tvm import tirx  # noqa: PLC0415 (only in workers)

        from qimeng_tvm.generate.winograd_late import winograd_loops  # noqa: PLC0415
        from qimeng_tvm.relax.prepare import legalize_and_fuse  # noqa: PLC0415

        fused = legalize_and_fuse(self.module(), target, late=[winograd_loops()])
        found = [f for f in fused.functions.values() if isinstance(f, tirx.PrimFunc)]
        if len(found) != 1:
            raise CheckError(f"{self.label} became {len(found)} functions; report this as a bug")
        return found[0]

    def inputs(self, kind: str, seed: int) -> dict[str, Array]:
        """Return what a graph is given, by name; the same seed gives the same."""
        rng = np.random.default_rng([seed, len(self.given)])
        return {g.name: _numbers(rng, g, kind) for g in self.given}

    def outcome(self, inputs: dict[str, Array]) -> Known:
        """Return the right answer, with its bounds."""
        known = {g.name: Known(_widened(inputs[g.name]), 0.0, g.dtype) for g in self.given}
        value: Known | None = None
        for step in self.steps:
            operands = [known[name] if name else value for name in step.reads]
            value = STEPS[step.op].value([o for o in operands if o is not None], dict(step.attributes))
        assert value is not None  # a graph has a step
        return value

    def tensors(self, library: Any, operator: Operator, inputs: dict[str, Array] | None = None) -> list[Any]:
        """See :class:`~qimeng_tvm.generate.checked.Checked`; of inputs other than the usual ones, if given."""
        import tvm  # noqa: PLC0415 (only in workers)

        from qimeng_tvm.compiler import tensors_of  # noqa: PLC0415
        from qimeng_tvm.schedule.prepack import PACK  # noqa: PLC0415

        known = inputs if inputs is not None else self.inputs("normal", 0)
        packed: dict[str, Any] = {}
        if operator.pack is not None:
            *operands, after = tensors_of(operator.pack)
            constants = [g.name for g in self.given if g.constant]
            strange = [t.name for t in operands if t.name not in constants]
            if strange or len(operands) != 1:
                told = ", ".join(t.name for t in operands)
                raise CheckError(f"{told} packed beforehand: that is not one constant operand")
            (before,) = operands
            packed[after.name] = tvm.runtime.empty(after.shape, after.dtype)
            library[PACK](tvm.runtime.tensor(known[before.name].reshape(before.shape)), packed[after.name])
        *parameters, _ = tensors_of(operator.main)
        strange = [p.name for p in parameters if p.name not in packed and p.name not in known]
        if strange:
            raise CheckError(f"the function has a parameter {strange[0]} that nobody gave it")
        # Passes may make flat what is contiguous.
        return [
            packed[p.name] if p.name in packed else tvm.runtime.tensor(known[p.name].reshape(p.shape))
            for p in parameters
        ]

    def check(self, library: Path, operator: Operator) -> NumbersReport:
        """See :class:`~qimeng_tvm.generate.checked.Checked`."""
        from qimeng_tvm.hardware import configure_threads  # noqa: PLC0415 (imports TVM)

        configure_threads(self.threads)
        loaded = load_private(str(library))
        checked, worst = 0, 0.0
        for case in self._cases(loaded, operator):
            report = self._checked(loaded, operator, case)
            if not report.ok:
                return report
            checked, worst = checked + report.cases, max(worst, report.error_ratio)
        return NumbersReport("ok", cases=checked, error_ratio=worst)

    def _cases(self, library: Any, operator: Operator) -> Iterator[Case]:
        """Inputs as ``main`` takes them, which may be flat, and what must come out."""
        from qimeng_tvm.compiler import tensors_of  # noqa: PLC0415 (imports TVM)

        *_, out = tensors_of(operator.main)
        for kind, seed in KINDS:
            inputs = self.inputs(kind, seed)
            right = self.outcome(inputs)
            tensors = self.tensors(library, operator, inputs)
            bound = np.broadcast_to(np.asarray(right.error, np.float64), right.exact.shape)
            yield Case(
                f"{kind}, seed {seed}",
                tuple(t.numpy() for t in tensors),
                (right.exact.reshape(out.shape),),
                (bound.reshape(out.shape),),
            )

    def _checked(self, library: Any, operator: Operator, case: Case) -> NumbersReport:
        """Check one case; on several cores again and again, until a race would have shown."""
        from qimeng_tvm.compiler import tensors_of  # noqa: PLC0415 (imports TVM)
        from qimeng_tvm.schedule.prepack import MAIN  # noqa: PLC0415

        *inputs, out = tensors_of(operator.main)
        arguments = [Argument(t.name, t.shape, t.dtype) for t in inputs]
        arguments.append(Argument(out.name, out.shape, out.dtype, "out"))
        start, report = time.monotonic(), NumbersReport("ok")
        for _ in range(_RACES if self.threads > 1 else 1):
            report = check_function(library[MAIN], arguments, [case])
            if not report.ok or time.monotonic() - start > _RACE_SECONDS:
                break
        return report

    def mnemonics(self, intrins: Sequence[str]) -> tuple[str, ...]:
        """See :class:`~qimeng_tvm.generate.checked.Checked`."""
        if not intrins:
            return ()
        from qimeng_tvm.verify import mnemonics_of  # noqa: PLC0415 (imports TVM)

        *taps, channels, filters = self._operands()[1].shape
        return mnemonics_of(intrins, filters, channels * int(np.prod(taps)))


def by(extents: tuple[int, ...]) -> str:
    """Write extents as labels have them: ``2x3x4``."""
    return "x".join(map(str, extents))


def _widened(array: Array) -> Array:
    return array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float64)


def _numbers(rng: np.random.Generator, given: Given, kind: str) -> Array:
    """Draw a tensor's elements, finite and of its dtype; see :data:`KINDS`."""
    target = numpy_dtype(given.dtype)
    if np.issubdtype(target, np.integer):
        info = np.iinfo(target)
        low, high = max(int(info.min), -1000), min(int(info.max), 1000)
        if kind == "small":
            return rng.integers(max(low, -3), 4, given.shape).astype(target)
        if kind == "extreme":
            return rng.choice(np.array([low, high]), given.shape).astype(target)
        high = -1 if kind == "negative" and low < 0 else high
        return rng.integers(low, high + 1, given.shape).astype(target)
    values = rng.standard_normal(given.shape)
    if kind == "small":
        values = rng.integers(-3, 4, given.shape).astype(np.float64)
    elif kind == "extreme":
        values = np.ldexp(values, rng.integers(-_SPREAD, _SPREAD + 1, given.shape))
    elif kind == "negative":
        values = -0.5 - np.abs(values)
    else:
        values = values + 0.4
    return values.astype(np.float32).astype(target)
