"""Compare what an operator computes with what it should, so that the usual ways to fool a checker do not.

Every case is run twice, in memory that differs in everything but the inputs: other addresses, the other guard page,
other canaries, other leftovers in the outputs. What a right function computes is the same bit for bit. Before the first
of the two, the function is called on the same addresses with other contents: what it keeps from that call is stale.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qimeng_tvm.check.buffers import GuardedArray, Place
from qimeng_tvm.check.tolerance import Compare, wrong_elements
from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import CheckError

Array = npt.NDArray[Any]
Role = Literal["in", "out", "inout"]
NumbersKind = Literal[
    "ok", "wrong", "canary", "input-changed", "not-deterministic", "unwritten", "crash", "error", "timeout", "memory"
]


@dataclass(frozen=True)
class Argument:
    """One buffer argument of a compiled function, in order.

    Attributes
    ----------
    name, shape, dtype : str, tuple of int, str
        As in the function's signature (TVM dtype names).
    role : str
        ``"in"``, ``"out"`` (must be written whole), or ``"inout"`` (``+=``: starts with values of its own).
    strides : tuple of int, optional
        In elements; only for functions that take strides.
    misalign : int
        Bytes off a 64-byte boundary, passed as the tensor's ``byte_offset``; only for functions that take an offset.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role = "in"
    strides: tuple[int, ...] | None = None
    misalign: int = 0


@dataclass(frozen=True)
class Case:
    """Inputs, and what must come out.

    Attributes
    ----------
    label : str
        What is special about it, for messages.
    inputs : tuple of ndarray
        One for each ``in`` and ``inout`` argument, in order, already of its dtype.
    expected : tuple of ndarray
        One for each ``out`` and ``inout`` argument, in higher precision or exact integers.
    bounds : tuple of ndarray or float
        Largest right absolute error of each output, per element or for all; 0 means exact.
    """

    label: str
    inputs: tuple[Array, ...]
    expected: tuple[Array, ...]
    bounds: tuple[Array | float, ...]


@dataclass(frozen=True)
class NumbersReport:
    """The outcome of :func:`check_function`: the first failure, or how many cases were right.

    ``kind`` is ``ok``, ``wrong``, ``canary`` (wrote outside a buffer), ``input-changed``, ``not-deterministic``,
    ``unwritten`` (left output elements alone), or a worker's ``crash``, ``error``, ``timeout``, ``memory``.
    ``error_ratio`` is the largest error seen, as a share of its bound.
    """

    kind: NumbersKind
    message: str = ""
    case: str = ""
    argument: str = ""
    index: tuple[int, ...] = ()
    expected: float | int | None = None
    got: float | int | None = None
    cases: int = 0
    error_ratio: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every check of every case held."""
        return self.kind == "ok"


def check_function(
    func: Callable[..., Any],
    arguments: Sequence[Argument],
    cases: Sequence[Case],
    compare: Compare = wrong_elements,
) -> NumbersReport:
    """Run ``func`` on every case in guarded buffers and report the first failure.

    A read or write beyond a guard page ends the process: call it in a worker (:func:`check_library` does).
    """
    if not cases:
        raise CheckError("no cases to check: a check of nothing would always pass")
    worst = 0.0
    for case in cases:
        _validate(arguments, case)
        report = _check_case(func, arguments, case, compare)
        if not report.ok:
            return report
        worst = max(worst, report.error_ratio)
    return NumbersReport("ok", f"{len(cases)} cases right", cases=len(cases), error_ratio=worst)


def _validate(arguments: Sequence[Argument], case: Case) -> None:
    wanted = sum(a.role != "in" for a in arguments)
    if not wanted:
        raise CheckError("the function has no output argument to check")
    given = (len(case.inputs), len(case.expected), len(case.bounds))
    if given != (sum(a.role != "out" for a in arguments), wanted, wanted):
        raise CheckError(f"case {case.label!r} has {given} inputs, outputs and bounds; the arguments want others")
    outs = [a for a in arguments if a.role != "in"]
    for a, expected in zip(outs, case.expected, strict=True):
        if expected.shape != a.shape:
            raise CheckError(f"case {case.label!r} expects {a.name} of shape {expected.shape}; it has {a.shape}")


@dataclass
class _Run:
    """The buffers of one run."""

    buffers: list[GuardedArray]
    originals: dict[int, Array]
    poison: int


def _run(
    func: Callable[..., Any],
    arguments: Sequence[Argument],
    case: Case,
    number: int,
    poison: int,
    rehearse: bool = False,
) -> _Run:
    """Call the function in fresh buffers; ``rehearse`` calls it there with other contents (flipped) beforehand."""
    place: Place = "start" if number else "end"
    inputs = iter(case.inputs)
    buffers, originals = [], {}
    for i, a in enumerate(arguments):
        seed = 1000 * number + i + 1
        buffer = GuardedArray(a.shape, a.dtype, strides=a.strides, place=place, misalign=a.misalign, seed=seed)
        if a.role == "out":
            buffer.poison(poison)
        else:
            originals[i] = np.asarray(next(inputs))
            buffer.fill(originals[i])
        buffers.append(buffer)
    # If the process dies, this line is in the worker's message.
    print(f"case {case.label!r}: every buffer lies against the guard page at its {place}", file=sys.stderr, flush=True)
    tensors = [b.tensor(offset=a.misalign > 0) for a, b in zip(arguments, buffers, strict=True)]
    if rehearse:
        for i, original in originals.items():
            buffers[i].fill(np.flip(original))
        func(*tensors)
        for i, buffer in enumerate(buffers):
            if i in originals:
                buffer.fill(originals[i])
            else:
                buffer.poison(poison)
    func(*tensors)
    return _Run(buffers, originals, poison)


def _check_case(func: Callable[..., Any], arguments: Sequence[Argument], case: Case, compare: Compare) -> NumbersReport:
    first = _run(func, arguments, case, 0, 0, rehearse=True)
    second = _run(func, arguments, case, 1, 1)
    for run in (first, second):
        damage = _damage(arguments, case, run)
        if damage is not None:
            return damage
    for i, a in enumerate(arguments):
        if a.role == "out":
            left = first.buffers[i].poisoned(0) & second.buffers[i].poisoned(1)
            if left.any():
                index = _first(left)
                text = f"{int(left.sum())} of {left.size} elements of {a.name} were never written, first {list(index)}"
                return NumbersReport("unwritten", text, case.label, a.name, index)
    for i, a in enumerate(arguments):
        if a.role != "in":
            differ = first.buffers[i].bits() != second.buffers[i].bits()
            if np.any(differ):
                return _explain_difference(func, arguments, case, (first, second, i))
    return _compare(arguments, case, first, compare)


def _damage(arguments: Sequence[Argument], case: Case, run: _Run) -> NumbersReport | None:
    for a, buffer in zip(arguments, run.buffers, strict=True):
        problems = buffer.check()
        if problems:
            return NumbersReport("canary", f"outside {a.name}: {'; '.join(problems)}", case.label, a.name)
    for i, original in run.originals.items():
        a = arguments[i]
        bits = run.buffers[i].bits()
        before = np.ascontiguousarray(original).view(bits.dtype).reshape(bits.shape)
        if a.role == "in" and np.any(bits != before):
            index = _first(np.asarray(bits != before))
            values = _number(original[index]), _number(run.buffers[i].array[index])
            text = f"input {a.name}{list(index)} was changed from {values[0]} to {values[1]}"
            return NumbersReport("input-changed", text, case.label, a.name, index, *values)
    return None


def _explain_difference(
    func: Callable[..., Any], arguments: Sequence[Argument], case: Case, runs: tuple[_Run, _Run, int]
) -> NumbersReport:
    """Two runs differ: find out on what it depends, by changing one thing at a time."""
    first, second, i = runs
    index = _first(np.asarray(first.buffers[i].bits() != second.buffers[i].bits()))
    name = arguments[i].name
    values = _number(first.buffers[i].array[index]), _number(second.buffers[i].array[index])
    head = f"{name}{list(index)} is {values[0]} in one run and {values[1]} in another"
    # As the second run in all but the poison; and as the second run in everything.
    third = _run(func, arguments, case, 1, 0)
    again = _run(func, arguments, case, 1, 1)

    def same(one: _Run, other: _Run) -> bool:
        return one.buffers[i].bits().tobytes() == other.buffers[i].bits().tobytes()

    expected = _number(case.expected[sum(a.role != "in" for a in arguments[:i])][index])
    if not same(second, again):
        text = f"{head}: it changes from run to run with nothing else changed (uninitialised memory, or a race)"
        return NumbersReport("not-deterministic", text, case.label, name, index, expected, values[0])
    if same(first, third):
        text = f"{head}: it depends on what the output held before the call (an accumulator without its init?)"
        return NumbersReport("wrong", text, case.label, name, index, expected, values[0])
    if same(second, third):
        text = f"{head}: it depends on memory outside the buffers, or on their addresses (a read out of bounds?)"
        return NumbersReport("wrong", text, case.label, name, index, expected, values[0])
    text = f"{head}: it depends on more than its inputs"
    return NumbersReport("not-deterministic", text, case.label, name, index, expected, values[0])


def _compare(arguments: Sequence[Argument], case: Case, run: _Run, compare: Compare) -> NumbersReport:
    outs = [(a, run.buffers[i]) for i, a in enumerate(arguments) if a.role != "in"]
    worst = 0.0
    for (a, buffer), expected, bound in zip(outs, case.expected, case.bounds, strict=True):
        report = compare_output(a.name, buffer.array, expected, bound, case.label, compare)
        if not report.ok:
            return report
        worst = max(worst, report.error_ratio)
    return NumbersReport("ok", case=case.label, cases=1, error_ratio=worst)


def compare_output(
    name: str, answer: Array, expected: Array, bound: Array | float, label: str, compare: Compare = wrong_elements
) -> NumbersReport:
    """Compare one output of a case with what must come out."""
    wide = np.int64 if np.issubdtype(expected.dtype, np.integer) or expected.dtype == np.bool_ else np.float64
    got = answer.astype(wide)
    limits = np.broadcast_to(np.asarray(bound, np.float64), answer.shape)
    wrong = compare(got, expected, limits)
    if wrong.shape != answer.shape:
        raise CheckError(f"the comparison of {name} answered with shape {wrong.shape}, not {answer.shape}")
    if wrong.any():
        index = _first(wrong)
        want, have = _number(expected[index]), _number(answer[index])
        text = (
            f"{name}{list(index)} is {have}, expected {want} (allowed error {limits[index]:.3g}); "
            f"{int(wrong.sum())} of {wrong.size} elements are wrong"
        )
        return NumbersReport("wrong", text, label, name, index, want, have)
    with np.errstate(all="ignore"):
        ratio = np.abs(got - expected.astype(wide)) / limits
    return NumbersReport("ok", case=label, cases=1, error_ratio=float(np.max(ratio[np.isfinite(ratio)], initial=0.0)))


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape))


def _number(value: Any) -> float | int:
    kind = np.asarray(value).dtype
    return int(value) if np.issubdtype(kind, np.integer) or kind == np.bool_ else float(value)


def make_cases(
    arguments: Sequence[Argument],
    inputs: Mapping[str, Sequence[Array]],
    oracle: Callable[..., Sequence[tuple[Array, Array | float]]],
) -> tuple[Case, ...]:
    """Make cases from labelled inputs and an oracle.

    Parameters
    ----------
    arguments : sequence of Argument
        The function's.
    inputs : mapping
        label -> one array for each ``in`` and ``inout`` argument.
    oracle : callable
        The same arrays -> (expected, bound) for each ``out`` and ``inout`` argument.
    """
    cases = []
    for label, arrays in inputs.items():
        outputs = oracle(*arrays)
        cases.append(Case(label, tuple(arrays), tuple(o[0] for o in outputs), tuple(o[1] for o in outputs)))
        _validate(arguments, cases[-1])
    return tuple(cases)


def load_and_check(
    library: str, function: str, arguments: Sequence[Argument], cases: Sequence[Case], compare: Compare
) -> NumbersReport:
    """Load a shared library and check one function of it: what runs in the worker."""
    return check_function(load_private(library)[function], arguments, cases, compare)


def load_private(library: str) -> Any:
    """Load a copy of a library: the loader answers with an older one when the same path was loaded before."""
    import tvm  # noqa: PLC0415 (a second or two; the parent need not pay it)

    copy = Path(tempfile.mkdtemp()) / "library.so"
    shutil.copyfile(library, copy)
    try:
        return tvm.runtime.load_module(str(copy))
    finally:
        shutil.rmtree(copy.parent, ignore_errors=True)


def check_library(
    worker: Worker,
    library: str | Path,
    arguments: Sequence[Argument],
    cases: Sequence[Case],
    *,
    function: str = "main",
    timeout: float = 120.0,
    compare: Compare = wrong_elements,
) -> NumbersReport:
    """Check a function of a compiled shared library in a worker; its death is an ordinary report."""
    payload = (str(Path(library).resolve()), function, tuple(arguments), tuple(cases), compare)
    outcome = worker.call("qimeng_tvm.check.numbers:load_and_check", payload, timeout)
    if outcome.kind == "refused":
        raise CheckError(f"the numbers of {library} could not be checked: {outcome.message}")
    if outcome.ok:
        if not isinstance(outcome.value, NumbersReport):
            raise CheckError(f"the worker answered with a {type(outcome.value).__name__}, not a report")
        return outcome.value
    return NumbersReport(outcome.kind, outcome.message)
