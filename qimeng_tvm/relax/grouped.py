"""Products with an operand that is repeated for each head of a group, on what is repeated.

Where there are fewer heads of keys and values than of queries, front ends copy each for all heads of its group. The
product is taken with an axis for the groups, along which keys and values are read again where they lie; of single
queries, those of a group are the rows of one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.rewriting import Rewriter, axes_of, rewriting_pass, shape_of

Shape = tuple[int, ...]
_RESHAPES = tuple(f"relax.{name}" for name in "expand_dims flatten reshape squeeze".split())

#: Method of the rewriter that looks through what a call does to heads.
_HOW: Mapping[str, str] = MappingProxyType(
    {
        "relax.broadcast_to": "_broadcast",
        "relax.repeat": "_repeat",
        "relax.permute_dims": "_swapped",
        "relax.multiply": "_scaled",
        "relax.divide": "_scaled",
        **dict.fromkeys(_RESHAPES, "_reshaped"),
    }
)


def group_heads() -> tvm.transform.Pass:
    """Return the pass that rewrites products whose right operand is repeated along its last batch axis."""
    return rewriting_pass("qimeng.GroupHeads", _GroupHeads)


@dataclass(frozen=True)
class _Repeated:
    """An operand before it is repeated.

    Attributes
    ----------
    source : Expr
        Of shape (.., heads, rows, columns).
    times : int
        How often each head comes, one after the other.
    """

    source: relax.Expr
    times: int


def _is_single(operand: relax.Expr) -> bool:
    shape = shape_of(operand)
    return shape is not None and math.prod(shape) == 1


@mutator
class _GroupHeads(Rewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self._wide: set[relax.Expr] = set()

    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        found = None
        if name == "relax.matmul":
            found = self._product(call)
        elif name == "relax.permute_dims":
            found = self._moved(call)
        return call if found is None else found

    def _product(self, call: relax.Call) -> relax.Expr | None:
        left, right = call.args
        rows, out = shape_of(left), shape_of(call)
        repeated = self._repeated(right)
        if repeated is None or rows is None or out is None or len(rows) != len(shape_of(right) or ()):
            return None
        *batch, heads, _, _ = shape_of(repeated.source) or ()
        outer = (*batch, heads, repeated.times)
        if math.prod(rows[:-2]) != math.prod(outer):
            return None
        product = self._grouped(left, repeated, outer, str(call.attrs.out_dtype or ""))
        self._wide.add(product)
        return relax.op.reshape(product, out)

    def _grouped(self, left: relax.Expr, repeated: _Repeated, outer: Shape, dtype: str) -> relax.Expr:
        """Return the product with the groups as an axis of their own; as rows, where each has but one."""
        *_, rows, columns = shape_of(left) or ()
        *batch, heads, depth, width = shape_of(repeated.source) or ()
        right, out_dtype, emit = repeated.source, dtype or None, self.builder_.emit
        if rows == 1:
            merged = emit(relax.op.reshape(left, (*batch, heads, repeated.times, columns)))
            return emit(relax.op.matmul(merged, right, out_dtype=out_dtype))
        queries = self._split(left, (*outer, rows, columns))
        keys = self._split(right, (*batch, heads, 1, depth, width))
        return emit(relax.op.matmul(queries, keys, out_dtype=out_dtype))

    def _repeated(self, operand: relax.Expr) -> _Repeated | None:
        """Look through what is done to all heads alike for what repeats them."""
        made, shape = self.bound(operand), shape_of(operand)
        if not isinstance(made, relax.Call) or not isinstance(made.op, tvm.ir.Op) or shape is None or len(shape) < 3:
            return None
        how = _HOW.get(str(made.op.name))
        found = getattr(self, how)(made, shape) if how is not None and shape_of(made.args[0]) is not None else None
        assert found is None or isinstance(found, _Repeated)
        return found

    def _broadcast(self, made: relax.Call, shape: Shape) -> _Repeated | None:
        source, before = made.args[0], shape_of(made.args[0])
        if before == shape:
            return self._repeated(source)
        single = len(shape) > 3 and before == (*shape[:-3], 1, *shape[-2:])
        return _Repeated(source, shape[-3]) if single else None

    def _repeat(self, made: relax.Call, shape: Shape) -> _Repeated | None:
        axis = made.attrs.axis
        heads = len(shape) > 3 and axis is not None and int(axis) % len(shape) == len(shape) - 3
        return _Repeated(made.args[0], int(made.attrs.repeats)) if heads else None

    def _reshaped(self, made: relax.Call, shape: Shape) -> _Repeated | None:
        """What is repeated of a reshape that makes heads of groups, or one axis of all batch axes."""
        source, before = made.args[0], shape_of(made.args[0]) or ()
        copy = self.made_by(source, "relax.broadcast_to")
        if before[-2:] != shape[-2:]:
            return None
        if copy is None or len(before) < 4 or shape_of(copy.args[0]) != (*before[:-3], 1, *before[-2:]):
            return self._repeated(source) if len(shape) == 3 and len(before) > 3 else None
        if shape != (*before[:-4], before[-4] * before[-3], *before[-2:]):
            return None
        return _Repeated(self._view(copy.args[0], (*before[:-3], *before[-2:])), before[-3])

    def _view(self, operand: relax.Expr, shape: Shape) -> relax.Expr:
        """Return a view of that shape: what an operand is one of already, where it has it."""
        made = self.bound(operand)
        view = isinstance(made, relax.Call) and str(getattr(made.op, "name", "")) in _RESHAPES
        if view and shape_of(made.args[0]) == shape:
            return made.args[0]
        return self.builder_.emit(relax.op.reshape(operand, shape))

    def _swapped(self, made: relax.Call, shape: Shape) -> _Repeated | None:
        """Rows and columns of each head may change places."""
        outer, axes = len(shape) - 2, list(axes_of(made))
        found = self._repeated(made.args[0]) if axes == [*range(outer), outer + 1, outer] else None
        if found is None:
            return None
        rank = len(shape_of(found.source) or ())
        swapped = relax.op.permute_dims(found.source, [*range(rank - 2), rank - 1, rank - 2])
        return _Repeated(self.builder_.emit(swapped), found.times)

    def _scaled(self, made: relax.Call, _shape: Shape) -> _Repeated | None:
        found = self._repeated(made.args[0]) if _is_single(made.args[1]) else None
        if found is None:
            return None
        factor = self.builder_.emit(relax.op.reshape(made.args[1], ()))
        return _Repeated(self.builder_.emit(relax.Call(made.op, [found.source, factor], made.attrs)), found.times)

    def _split(self, operand: relax.Expr, shape: Shape) -> relax.Expr:
        """Return a view of an operand with its heads as two axes, before it was permuted or scaled."""
        made, own = self.bound(operand), shape_of(operand) or ()
        known = isinstance(made, relax.Call) and isinstance(made.op, tvm.ir.Op) and bool(made.args)
        before, name = (shape_of(made.args[0]), str(made.op.name)) if known else (None, "")
        emit = self.builder_.emit
        if before is not None:
            joined = (*shape[:-4], shape[-4] * shape[-3], *shape[-2:])
            if before == {"relax.broadcast_to": own, "relax.reshape": joined}.get(name):
                return self._split(made.args[0], shape)
            if name == "relax.multiply" and before == own and _is_single(made.args[1]):
                factor = emit(relax.op.reshape(made.args[1], ()))
                return emit(relax.op.multiply(self._split(made.args[0], shape), factor))
            if name == "relax.permute_dims" and own == joined:
                return self._split_permuted(made, before, shape)
        return operand if own == shape else emit(relax.op.reshape(operand, shape))

    def _split_permuted(self, made: relax.Call, before: Shape, shape: Shape) -> relax.Expr:
        heads, axes = len(shape) - 4, list(axes_of(made))
        at = axes[heads]
        wide = (*before[:at], *shape[-4:-2], *before[at + 1 :])
        source = made.args[0]
        split = self._split(source, wide) if at == heads else self.builder_.emit(relax.op.reshape(source, wide))
        moved = [b for a in axes for b in ([at, at + 1] if a == at else [a + (a > at)])]
        return self.builder_.emit(relax.op.permute_dims(split, moved))

    def _moved(self, call: relax.Call) -> relax.Expr | None:
        """Permute the result of a grouped product before its groups become heads: the product can write it so."""
        shape, wide = shape_of(call.args[0]), call.args[0]
        while (made := self.made_by(wide, "relax.reshape")) is not None:
            wide = made.args[0]
        own = shape_of(wide)
        if wide not in self._wide or own is None or shape is None or len(own) != len(shape) + 1:
            return None
        joined = [(*own[:n], own[n] * own[n + 1], *own[n + 2 :]) for n in range(len(shape))]
        if shape not in joined:
            return None
        at = joined.index(shape)
        axes = [b for a in axes_of(call) for b in ([at, at + 1] if a == at else [a + (a > at)])]
        source = self.permuted(wide)
        if source is not None:
            wide, axes = source.args[0], [list(axes_of(source))[a] for a in axes]
        moved = self.builder_.emit(relax.op.permute_dims(wide, axes))
        self._wide.add(moved)
        return relax.op.reshape(moved, shape_of(call))
