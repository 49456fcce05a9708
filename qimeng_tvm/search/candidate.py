"""What runs in the worker: build a candidate, compare its numbers, time it.

Inputs are small whole numbers, chosen so that every partial sum of the contraction is exact in its accumulator: any
order of summation gives the same bits, and the comparison needs no tolerance.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import s_tir
from tvm.target import Target

from qimeng_tvm import lowering
from qimeng_tvm.check.buffers import numpy_dtype
from qimeng_tvm.hardware import beside, use_threads
from qimeng_tvm.schedule.analysis import LAYOUT_FREE, contraction_of, find_anchor_through_producers, root_blocks
from qimeng_tvm.schedule.prepack import MAIN, PACK, split_prepack
from qimeng_tvm.search.rungs import more_repeats

Array = npt.NDArray[Any]
#: ``clock(number, repeat)``: seconds of a call, the mean of ``number``, in each of ``repeat`` repeats.
Clock = Callable[[int, int], list[float]]

#: Seconds of timing for one candidate.
_BUDGET = 0.1
_BATCH = 0.004
#: Repeats of a candidate that is among the fastest: enough to find its minimum, and no more than that.
_MOST = 8
#: Copies of weights, at most: those of more are so small that where they come from hardly tells.
_MOST_COPIES = 1024
_KEEP_BUILT = 32
_KEEP_PROBES = 4
_EXACT = {"float32": 2**24, "float64": 2**53, "float16": 2**11, "bfloat16": 2**8}


@dataclass(frozen=True)
class Probe:
    """The function before any schedule, as plain data: what goes in and how to know what must come out.

    Attributes
    ----------
    key : str
        Workload key; inputs and expected output are kept under it.
    params : tuple of (shape, dtype)
        All parameters, the output last.
    depth : int
        K of the contraction.
    func : str
        ``save_json`` of the function.
    operands : tuple, optional
        For a bare product: (index, axes) of A and of B, and the axes of C; NumPy is the oracle then.
        Otherwise the same function in a plain schedule of TVM's is.
    weights : tuple of int
        Inputs that are constant where the function is called.
    evicting : int
        Bytes of them that go by before a call sees those of the one before it again; 0: every call has the same.
    """

    key: str
    params: tuple[tuple[tuple[int, ...], str], ...]
    depth: int
    func: str
    operands: tuple[tuple[int, str], tuple[int, str], str] | None
    weights: tuple[int, ...] = ()
    evicting: int = 0


def probe_of(key: str, func: Any, depth: int, evicting: int = 0) -> Probe:
    """Describe a function for the worker; ``evicting`` as in :class:`Probe`."""
    params = tuple((tuple(int(x) for x in p.shape), str(p.dtype)) for p in func.params)
    weights = tuple(int(i) for i in (func.attrs or {}).get(LAYOUT_FREE, []))
    return Probe(key, params, depth, tvm.ir.save_json(func), _bare_product(func), weights, evicting)


def _bare_product(func: Any) -> tuple[tuple[int, str], tuple[int, str], str] | None:
    sch = s_tir.Schedule(func)
    blocks = root_blocks(sch)
    if len(blocks) != 1:
        return None
    block = sch.get(blocks[0])
    parts = contraction_of(block)
    if parts is None:
        return None
    roles = dict(zip((v.var.name for v in block.iter_vars), parts.loops, strict=True))
    c_axes = "".join(roles.get(getattr(i, "name", ""), "1") for i in block.body.indices)

    def where(buffer: Any) -> int | None:
        return next((i for i, p in enumerate(func.params) if p.same_as(buffer)), None)

    a, b, c = where(parts.a.buffer), where(parts.b.buffer), where(block.body.buffer)
    if a is None or b is None or c != len(func.params) - 1:
        return None
    return (a, "".join(parts.a.axes)), (b, "".join(parts.b.axes)), c_axes


# -- build ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """A candidate as machine code.

    Attributes
    ----------
    library : module
        With ``main``, and ``pack_b`` when a constant operand is packed beforehand.
    packs : bool
        Whether it is.
    params : tuple of (shape, dtype)
        What ``main`` takes, the output last.
    """

    library: Any
    packs: bool
    params: tuple[tuple[tuple[int, ...], str], ...]


_built: OrderedDict[str, Built] = OrderedDict()


def compile_module(module: str, target: Mapping[str, Any]) -> Built:
    """Compile a scheduled module (``save_json``) in memory."""
    operator = split_prepack(tvm.ir.load_json(module)[MAIN])
    library = lowering.build(operator.module, Target(dict(target)))
    params = tuple((tuple(int(x) for x in p.shape), str(p.dtype)) for p in operator.main.params)
    return Built(library, operator.packs, params)


def build(token: str, module: str, target: Mapping[str, Any], threads: int) -> None:
    """Compile a scheduled module and keep it under its token, on cores that measuring with so many threads leaves."""
    with beside(threads):
        built = compile_module(module, target)
        # LLVM makes machine code when a function is first asked for: now, while another candidate is measured.
        for name in (MAIN, PACK) if built.packs else (MAIN,):
            built.library[name]
    _built[token] = built
    while len(_built) > _KEEP_BUILT:
        _built.popitem(last=False)


# -- numbers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Inputs, and the output that they must give: to the bit when ``exact``."""

    inputs: tuple[Any, ...]
    expected: Array
    exact: bool


_cases: OrderedDict[str, Case] = OrderedDict()


def make_inputs(probe: Probe) -> tuple[Array, ...]:
    """Whole numbers for every input: products of K of them sum up without rounding."""
    rng = np.random.default_rng(len(probe.key) + probe.depth)
    arrays = []
    for i, (shape, dtype) in enumerate(probe.params[:-1]):
        target = numpy_dtype(dtype)
        if np.issubdtype(target, np.integer):
            info = np.iinfo(target)
            # Full range in 8 bits (what saturates an intermediate shows), as long as K of them fit 32 bits.
            limit = max(1, math.isqrt(2**30 // max(probe.depth, 1)))
            low, high = (max(info.min, -limit), min(info.max, limit)) if target.itemsize == 1 else (-3, 3)
        else:
            # The first operand has more bits than bfloat16 holds where the dtype does, the others few.
            room = min(2**11 - 1, _EXACT["float32"] // (4 * probe.depth), _EXACT[dtype] - 1)
            high = max(1, room) if i == 0 else 3
            low = -high
        arrays.append(rng.integers(low, high + 1, size=shape, dtype=np.int64).astype(target))
    return tuple(arrays)


def expected_product(probe: Probe, arrays: tuple[Array, ...]) -> Array:
    """Return what a bare product must give, in float64 (whole numbers below 2^53: exact)."""
    assert probe.operands is not None
    (a, a_axes), (b, b_axes), c_axes = probe.operands

    batch = "".join(dict.fromkeys(x for x in a_axes + b_axes if x not in "1mnk"))

    def arranged(array: Array, axes: str, plane: str) -> Array:
        wide = array.astype(np.float64).squeeze(tuple(i for i, x in enumerate(axes) if x == "1"))
        axes = axes.replace("1", "")
        order = batch + plane
        wide = wide.transpose([axes.index(x) for x in order if x in axes])
        return np.expand_dims(wide, tuple(i for i, x in enumerate(order) if x not in axes))

    product = arranged(arrays[a], a_axes, "mk") @ arranged(arrays[b], b_axes, "kn")
    have, want = batch + "mn", c_axes.replace("1", "")
    product = product.squeeze(tuple(i for i, x in enumerate(have) if x not in want))
    kept = [x for x in have if x in want]
    return np.ascontiguousarray(product.transpose([kept.index(x) for x in want])).reshape(probe.params[-1][0])


def plain_library(func: Any, target: Mapping[str, Any]) -> Any:
    """Compile a function in a schedule as plain as can be, without any intrinsic: the oracle of a fused function."""
    sch = s_tir.Schedule(func)
    anchor = find_anchor_through_producers(sch)
    if anchor is not None:
        loops = sch.get_loops(anchor)
        spatial, depth = loops[:-1], loops[-1]
        sch.reorder(*spatial[:-1], depth, spatial[-1])
        # Vectorized before decomposed: what is left afterwards is no reduction block to TVM.
        sch.vectorize(sch.split(spatial[-1], [None, 8])[1])
        sch.decompose_reduction(anchor, depth)
    module = tvm.IRModule({MAIN: sch.mod[MAIN].with_attr("global_symbol", MAIN)})
    return tvm.tirx.build(module, target=Target(dict(target)))


def case_of(probe: Probe, target: Mapping[str, Any]) -> Case:
    """Return the case of a function, made at its first use; the target is this machine's."""
    if probe.key in _cases:
        _cases.move_to_end(probe.key)
        return _cases[probe.key]
    arrays = make_inputs(probe)
    inputs = tuple(tvm.runtime.tensor(a) for a in arrays)
    shape, dtype = probe.params[-1]
    if probe.operands is not None:
        case = Case(inputs, expected_product(probe, arrays).astype(numpy_dtype(dtype)), True)
    else:
        out = tvm.runtime.empty(shape, dtype)
        plain_library(tvm.ir.load_json(probe.func), target)[MAIN](*inputs, out)
        case = Case(inputs, out.numpy(), False)
    _cases[probe.key] = case
    while len(_cases) > _KEEP_PROBES:
        _cases.popitem(last=False)
    return case


def wrong_numbers(got: Array, case: Case) -> str:
    """Say what is wrong with an output; empty when nothing is."""
    expected = case.expected
    if case.exact or np.issubdtype(expected.dtype, np.integer):
        wrong = np.asarray(got != expected)
    else:
        # What goes into the epilogue is exact; inside it, two compilations may round differently.
        wide, have = expected.astype(np.float64), got.astype(np.float64)
        unit = 1.0 / _EXACT[str(expected.dtype)]
        with np.errstate(invalid="ignore"):
            close = np.abs(have - wide) <= 64 * unit * np.maximum(np.abs(wide), 1.0)
        wrong = ~(close | (have == wide) | (np.isnan(have) & np.isnan(wide)))
    if not wrong.any():
        return ""
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    return (
        f"{int(wrong.sum())} of {wrong.size} elements are wrong, first C{list(index)}: "
        f"{float(got[index]):g}, expected {float(expected[index]):g}"
    )


# -- time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """What came of measuring; ``kind`` says how it ended, ``message`` why.

    ``ok``; ``numbers`` (wrong); ``unbuilt`` (this process does not have the token). On another machine also ``error``
    (it was refused there), ``timeout``, ``lost`` (the connection broke) and ``unfit`` (no candidate can run there).
    """

    kind: str
    seconds_min: float = 0.0
    seconds_median: float = 0.0
    message: str = ""


def measure(token: str, probe: Probe, target: Mapping[str, Any], threads: int, best: float) -> Timing:
    """Compare the candidate's numbers, then time it; packing of a constant operand is outside the time.

    Parameters
    ----------
    token : str
        From :func:`build`.
    probe : Probe
        What goes in and what must come out.
    target : mapping
        Target of the oracle, where TVM computes it.
    threads : int
        Cores to use.
    best : float
        Seconds of the best so far; 0 when there is none.
    """
    built = _built.get(token)
    if built is None:
        return Timing("unbuilt")
    with use_threads(threads, pin=True):
        return check_and_time(built, probe, case_of(probe, target), best)


def check_and_time(built: Built, probe: Probe, case: Case, best: float, device: Any = None) -> Timing:
    """Compare numbers and time on a device: this machine's processor, or that of an RPC session."""
    here = device is None
    device = tvm.cpu() if here else device
    arguments = list(case.inputs) if here else [tvm.runtime.tensor(x.numpy(), device) for x in case.inputs]
    if built.packs:
        at = next(i for i, (own, new) in enumerate(zip(probe.params, built.params, strict=True)) if own != new)
        packed = tvm.runtime.empty(*built.params[at], device)
        built.library[PACK](arguments[at], packed)
        arguments[at] = packed
    shape, dtype = probe.params[-1]
    out = tvm.runtime.empty(shape, dtype, device)
    out.copyfrom(_poison(shape, dtype))
    start = time.perf_counter()
    built.library[MAIN](*arguments, out)
    # Of a call over the network this clock knows nothing.
    first = time.perf_counter() - start if here else 0.0
    problem = wrong_numbers(out.numpy(), case)
    if problem:
        return Timing("numbers", message=problem)
    apart = probe.evicting if here else 0
    timing = _time(clock_of(built.library, [*arguments, out], device, probe.weights, apart), first, best)
    # Timing calls it many times over the same output.
    problem = wrong_numbers(out.numpy(), case)
    return Timing("numbers", message=f"after repeated calls: {problem}") if problem else timing


def _poison(shape: tuple[int, ...], dtype: str) -> Array:
    target = numpy_dtype(dtype)
    value = np.iinfo(target).min + 1 if np.issubdtype(target, np.integer) else np.nan
    return np.full(shape, value, target)


def clock_of(library: Any, arguments: list[Any], device: Any, weights: Sequence[int] = (), evicting: int = 0) -> Clock:
    """Return what times ``main``: repeats of calls, the seconds of a call in each.

    Parameters
    ----------
    library, arguments, device
        What is called, the output last.
    weights : sequence of int
        Arguments of which every call gets another copy, when ``evicting``.
    evicting : int
        Bytes that all copies come to; see :class:`Probe`.
    """

    def clock(number: int, repeat: int) -> list[float]:
        # The evaluator makes one more call beforehand, to warm up.
        evaluate = library.time_evaluator(MAIN, device, number=number, repeat=repeat)
        return [float(s) for s in evaluate(*arguments).results]

    sets = copies_of(arguments, weights, evicting)
    if len(sets) == 1:
        return clock
    function, turns = library[MAIN], cycle(sets)

    def clock_apart(number: int, repeat: int) -> list[float]:
        function(*next(turns))
        found = []
        for _ in range(repeat):
            start = time.perf_counter()
            for _ in range(number):
                function(*next(turns))
            found.append((time.perf_counter() - start) / number)
        return found

    return clock_apart


def copies_of(arguments: list[Any], weights: Sequence[int], evicting: int) -> list[list[Any]]:
    """Return lists of arguments that differ in the copies of their weights, as many as come to so many bytes."""
    size = sum(math.prod(arguments[i].shape) * numpy_dtype(str(arguments[i].dtype)).itemsize for i in weights)
    sets = [arguments]
    for _ in range(min(math.ceil(evicting / size), _MOST_COPIES) - 1 if size else 0):
        copied = list(arguments)
        for i in weights:
            copied[i] = tvm.runtime.empty(arguments[i].shape, str(arguments[i].dtype))
            copied[i].copyfrom(arguments[i])
        sets.append(copied)
    return sets


def _time(clock: Clock, first: float, best: float) -> Timing:
    """Time ``main``; ``first`` is what its first call took, cold caches included, if that is known."""
    if first < _BATCH:
        first = clock(1, 1)[0]
    number = max(1, math.ceil(_BATCH / max(first, 1e-9)))
    planned = 2 if first > _BUDGET else min(max(int(_BUDGET / (first * number)), 4), _MOST)
    times: list[float] = []
    while more := more_repeats(times, planned, best, first):
        times += clock(number, more)
    return Timing("ok", min(times), float(np.median(times)))
