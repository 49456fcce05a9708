"""Attention a head at a time: scores, softmax and the weighted sum of values, before the next head's.

The scores of all heads are more than caches hold (12 heads of 197 places: 1.9 MB, written and read twice), those of one
head are not. The functions stay what they are, each served by its rule; only the order is another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import mutator

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.relax.rewriting import CountingRewriter
from qimeng_tvm.schedule.readers import analyze
from qimeng_tvm.schedule.slices import Cut, Together, cut, in_turns

#: Attribute of a function that is computed in slices: what it is made of.
SLICES = "qimeng.slices"
#: Fewest rows of scores that are worth a product of their own.
_FEWEST = 32
#: Of the second-level cache, what scores and weights of a slice may take; the operands need some, too.
_SHARE = 0.75


def slice_attention(hardware: Hardware, threads: int) -> tvm.transform.Pass:
    """Return the pass that makes one function of two products and the softmax between them.

    Parameters
    ----------
    hardware : Hardware
        Its second-level cache says how much a slice may be.
    threads : int
        Cores that share the slices; with fewer slices than cores, nothing is changed.
    """

    @tvm.transform.module_pass(opt_level=0, name="qimeng.SliceAttention")  # type: ignore[untyped-decorator]
    def run(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        sliced = _Slices(mod, hardware, threads).transform()
        return relax.transform.DeadCodeElimination()(sliced)

    return run


def together_of(func: tirx.PrimFunc) -> Together | None:
    """Return what a function that is computed in slices is made of; None for any other function."""
    told = (func.attrs or {}).get(SLICES)
    if told is None:
        return None
    cuts = tuple((int(count), {str(n): int(at) for n, at in axes.items()}) for count, axes in told["cuts"])
    arguments = tuple(tuple(str(name) for name in names) for names in told["arguments"])
    tensors = {str(p.name): p for p in func.params}
    return Together(tensors, cuts, tuple(told["parts"]), arguments)


def _told(together: Together) -> dict[str, Any]:
    return {
        "cuts": [[count, dict(axes)] for count, axes in together.cuts],
        "arguments": [list(names) for names in together.arguments],
        "parts": list(together.parts),
    }


@dataclass(frozen=True)
class _Chain:
    """Two products and the softmax between them, as calls.

    Attributes
    ----------
    calls : sequence of relax.Call
        Of ``call_tir``, in order.
    inner : sequence of int
        By call but the first, which of its arguments the one before makes.
    """

    calls: tuple[relax.Call, ...]
    inner: tuple[int, ...]

    def arguments(self) -> list[relax.Expr]:
        """Return what comes from outside, in order."""
        made = (None, *self.inner)
        return [x for call, at in zip(self.calls, made, strict=True) for n, x in enumerate(call.args[1]) if n != at]


@mutator
class _Slices(CountingRewriter):
    def __init__(self, mod: tvm.IRModule, hardware: Hardware, threads: int) -> None:
        super().__init__(mod)
        self.hardware, self.threads = hardware, threads
        self.known: dict[Any, tvm.ir.GlobalVar | None] = {}
        self.kinds: dict[str, str] = {}

    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        chain = self.chain(call) if name == "relax.call_tir" else None
        if chain is None:
            return call
        key = (tuple(str(c.args[0].name_hint) for c in chain.calls), chain.inner)
        if key not in self.known:
            functions = [self.mod[c.args[0]] for c in chain.calls]
            found = together(functions, chain.inner, self.hardware, self.threads)
            self.known[key] = None if found is None else self.builder_.add_func(_whole(found), "attention")
        made = self.known[key]
        return call if made is None else relax.call_tir(made, relax.Tuple(chain.arguments()), call.ty)

    def chain(self, last: relax.Call) -> _Chain | None:
        """Return the chain that ends with a call; None when there is none."""
        calls, call = [last], last
        inner: list[int] = []
        if self.kind(last) != "matmul":
            return None
        for kind in ("rowwise", "matmul"):
            makers = ((n, self.makes(x, kind)) for n, x in enumerate(call.args[1]))
            at, call = next(((n, made) for n, made in makers if made is not None), (0, None))
            if call is None:
                return None
            calls.insert(0, call)
            inner.insert(0, at)
        return _Chain(tuple(calls), tuple(inner))

    def makes(self, operand: relax.Expr, kind: str) -> relax.Call | None:
        """Return the call of a function of that kind that makes an operand which nothing else reads."""
        if not isinstance(operand, relax.Var) or self.uses[operand] != 1:
            return None
        call = self.made_by(operand, "relax.call_tir")
        return call if call is not None and self.kind(call) == kind else None

    def kind(self, call: relax.Call) -> str:
        """Return the kind of what a call's function computes; empty where it is of no known shape, or of none."""
        name = str(call.args[0].name_hint)
        if name not in self.kinds:
            func = self.mod[call.args[0]]
            known = all(isinstance(x, tirx.IntImm) for p in func.params for x in getattr(p, "shape", ()))
            info = analyze(func, self.threads) if known and SLICES not in (func.attrs or {}) else None
            self.kinds[name] = info.kind if info is not None else ""
        return self.kinds[name]


def _whole(found: Together) -> tirx.PrimFunc:
    return in_turns(found, found.parts, parallel=False).with_attr(SLICES, _told(found))


def together(
    functions: Sequence[tirx.PrimFunc], inner: Sequence[int], hardware: Hardware, threads: int
) -> Together | None:
    """Return the slices of scores, softmax and weighted sum; None where they cannot be had, or are fewer than cores.

    Parameters
    ----------
    functions : sequence of PrimFunc
        As fused, before any schedule.
    inner : sequence of int
        By function but the first, which of its parameters the one before makes.
    hardware : Hardware
        The machine.
    threads : int
        Cores that share the slices.
    """
    state = _State(tuple(functions), tuple(inner), ())
    shape = [int(x) for x in functions[0].params[-1].shape]
    for axis in range(len(shape) - 2):
        # What both operands of the scores have is a head; what only queries have (groups of them) are rows.
        wide = state.cut(axis, 1) if shape[axis] > 1 else None
        if wide is not None and len(wide.cuts[-1][0].places) > 2:
            state = wide
    rows = shape[-2]
    room = _SHARE * hardware.cache(2).size
    pieces = [n for n in range(1, rows + 1) if rows % n == 0 and rows // n >= min(rows, _FEWEST)]
    count = next((n for n in pieces if state.kept / n <= room), 1)
    if count > 1:
        state = state.cut(len(shape) - 2, rows // count) or state
    found = state.together()
    return found if state.cuts and found.slices >= threads else None


@dataclass(frozen=True)
class _State:
    """Functions of a slice, and the cuts that led to them: of each axis, one a function."""

    functions: tuple[tirx.PrimFunc, ...]
    inner: tuple[int, ...]
    cuts: tuple[tuple[Cut, ...], ...]

    def cut(self, axis: int, width: int) -> _State | None:
        """Cut along an axis of what the first function makes."""
        functions, cuts = [], []
        at: int | None = axis
        for n, func in enumerate(self.functions):
            place = self.inner[n - 1] if n else len(func.params) - 1
            found = cut(func, place, at, width) if at is not None else None
            if found is None:
                return None
            functions.append(found[0])
            cuts.append(found[1])
            at = found[1].places.get(len(func.params) - 1)
        return _State(tuple(functions), self.inner, (*self.cuts, tuple(cuts))) if at is not None else None

    @property
    def kept(self) -> float:
        """Bytes of what the functions of a slice hand on."""
        made = [f.params[-1] for f in self.functions[:-1]]
        return float(sum(math.prod(int(x) for x in p.shape) * tvm.DataType(str(p.dtype)).itemsize for p in made))

    def together(self) -> Together:
        """Return the functions with names for all tensors."""
        made = (None, *self.inner)
        arguments, tensors = [], {}
        for n, (func, at) in enumerate(zip(self.functions, made, strict=True)):
            outside = [f"x{n}_{m}" for m in range(len(func.params))]
            if at is not None:
                outside[at] = f"made{n}"
            if n < len(self.functions) - 1:
                outside[-1] = f"made{n + 1}"
            arguments.append(tuple(outside))
            for m, name in enumerate(outside):
                if name.startswith("x"):
                    tensors[name] = self._whole(n, m)
        return Together(
            tensors, tuple(self._axes(cuts, arguments) for cuts in self.cuts), self.functions, tuple(arguments)
        )

    def _axes(self, cuts: Sequence[Cut], arguments: Sequence[Sequence[str]]) -> tuple[int, Mapping[str, int]]:
        named = {names[m]: axis for names, one in zip(arguments, cuts, strict=True) for m, axis in one.places.items()}
        return cuts[0].slices, named

    def _whole(self, function: int, param: int) -> Any:
        """Return a parameter with the extents that it had before all cuts."""
        like = self.functions[function].params[param]
        shape = [int(x) for x in like.shape]
        for cuts in self.cuts:
            axis = cuts[function].places.get(param)
            if axis is not None:
                shape[axis] = cuts[function].extent
        return tirx.decl_buffer(shape, str(like.dtype), like.name)
