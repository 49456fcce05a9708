"""Tensors of many axes as matrices: a reshape is a view, but what stands between a product and its epilogue unfused.

Reshapes and permutations are moved behind the elementwise operators that follow them. Reshapes cancel where they meet;
permutations end at the products that read them, which can do so in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.rewriting import Rewriter, axes_of, rewriting_pass, shape_of

Shape = tuple[int, ...]

_UNARY = frozenset(
    f"relax.{name}"
    for name in (
        "abs astype clip cos erf exp log negative nn.gelu nn.gelu_tanh nn.leakyrelu nn.relu nn.silu rsqrt sigmoid sin "
        "sqrt square tanh"
    ).split()
)
_BINARY = frozenset(f"relax.{name}" for name in "add divide maximum minimum multiply power subtract".split())
#: Along the last axis; operands after the first are vectors of it.
_ROWS = frozenset(f"relax.nn.{name}" for name in "layer_norm log_softmax rms_norm softmax".split())


#: Reshapes by other names.
_VIEWS = frozenset(f"relax.{name}" for name in "expand_dims flatten squeeze".split())


#: Method of the rewriter for calls of an operator.
_HOW: Mapping[str, str] = MappingProxyType(
    {
        "relax.matmul": "_matmul",
        "relax.reshape": "_reshape",
        "relax.permute_dims": "_permute",
        "relax.broadcast_to": "_broadcast",
        **dict.fromkeys(_VIEWS, "_as_reshape"),
        **dict.fromkeys(_UNARY, "_unary"),
        **dict.fromkeys(_BINARY, "_binary"),
        **dict.fromkeys(_ROWS, "_rows"),
    }
)


def flatten() -> tvm.transform.Pass:
    """Return the pass that makes a product of (.., M, K) and (K, N) one of two matrices, and moves reshapes back."""
    return rewriting_pass("qimeng.Flatten", _Flatten)


def _split_axis(full: Shape, to: Shape) -> int | None:
    """Return the axis that is two in the other shape, all others being the same; None when there is no such axis."""
    found = (n for n in range(len(full)) if to == (*full[:n], *to[n : n + 2], *full[n + 1 :]))
    return next((n for n in found if len(to) == len(full) + 1 and math.prod(to[n : n + 2]) == full[n]), None)


@mutator
class _Flatten(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        return getattr(self, _HOW[name])(call) if name in _HOW else call

    def _again(self, call: relax.Expr) -> relax.Expr:
        """Rewrite a call that took another's place."""
        call = self.builder_.normalize(call)
        return self.rewrite(call, str(call.op.name)) if isinstance(call, relax.Call) else call

    def _as_reshape(self, call: relax.Call) -> relax.Expr:
        shape = shape_of(call)
        return call if shape is None else self._again(relax.op.reshape(call.args[0], shape))

    def _broadcast(self, call: relax.Call) -> relax.Expr:
        """Drop a broadcast to the shape that is there."""
        shape = shape_of(call)
        return call.args[0] if shape is not None and shape == shape_of(call.args[0]) else call

    def _matmul(self, call: relax.Call) -> relax.Expr:
        left, right = call.args
        a, b, out = shape_of(left), shape_of(right), shape_of(call)
        if a is None or b is None or out is None or len(a) < 3:
            return call
        if len(b) == 2:
            flat = self._view(left, (math.prod(a[:-1]), a[-1]))
            return self._back(call, relax.op.matmul(flat, right, call.attrs.out_dtype))
        return self._split_batch(call, a, b)

    def _split_batch(self, call: relax.Call, a: Shape, b: Shape) -> relax.Expr:
        """Undo reshapes that merge the batch axes of both operands: each is then a permutation of something."""
        inner = [self._inner(operand) for operand in call.args]
        if inner[0] is None or inner[1] is None or a[:-2] != b[:-2]:
            return call
        wide = [shape_of(x) or () for x in inner]
        merged = all(len(w) > len(s) and w[-2:] == s[-2:] for w, s in zip(wide, (a, b), strict=True))
        if not merged or wide[0][:-2] != wide[1][:-2]:
            return call
        return self._back(call, relax.op.matmul(inner[0], inner[1], call.attrs.out_dtype))

    def _unary(self, call: relax.Call) -> relax.Expr:
        permuted = self.permuted(call.args[0])
        if permuted is not None:
            value = self.builder_.emit(self._again(relax.Call(call.op, [permuted.args[0], *call.args[1:]], call.attrs)))
            return relax.op.permute_dims(value, list(axes_of(permuted)))
        inner = self._inner(call.args[0])
        return call if inner is None else self._back(call, relax.Call(call.op, [inner, *call.args[1:]], call.attrs))

    def _reshape(self, call: relax.Call) -> relax.Expr:
        source, to = call.args[0], shape_of(call)
        inner = self.made_by(source, "relax.reshape")
        if to is None:
            return call
        if inner is not None and shape_of(inner.args[0]) is not None:
            source = inner.args[0]
        return source if shape_of(source) == to else relax.op.reshape(source, to)

    def _permute(self, call: relax.Call) -> relax.Expr:
        """Join permutations of permutations; one that moves axes of one element only is a view.

        Not that of a matrix: a product reads it where it lies.
        """
        source, axes, shape = call.args[0], list(axes_of(call)), shape_of(call.args[0])
        inner = self.permuted(source)
        if inner is not None:
            first = list(axes_of(inner))
            return self._again(relax.op.permute_dims(inner.args[0], [first[i] for i in axes]))
        rank = len(axes)
        if shape is None or axes == [*range(rank - 2), rank - 1, rank - 2]:
            return call
        moved = [i for i in axes if shape[i] != 1]
        return self._view(source, tuple(shape[i] for i in axes)) if moved == sorted(moved) else call

    def _binary(self, call: relax.Call) -> relax.Expr:
        for at in (0, 1):
            permuted, other = self.permuted(call.args[at]), call.args[1 - at]
            shape = shape_of(other)
            if permuted is not None and shape is not None and math.prod(shape) == 1:
                single = self._view(other, ())
                pair = [permuted.args[0], single] if at == 0 else [single, permuted.args[0]]
                value = self.builder_.emit(self._again(relax.Call(call.op, pair, call.attrs)))
                return relax.op.permute_dims(value, list(axes_of(permuted)))
        for at in (0, 1):
            inner = self._inner(call.args[at])
            if inner is None or shape_of(call.args[at]) != shape_of(call):
                continue
            other = self._fitting(call.args[1 - at], shape_of(call) or (), shape_of(inner) or ())
            if other is not None:
                pair = [inner, other] if at == 0 else [other, inner]
                return self._back(call, relax.Call(call.op, pair, call.attrs))
        return call

    def _fitting(self, other: relax.Expr, full: Shape, to: Shape) -> relax.Expr | None:
        """Return the other operand as it goes with a tensor of shape ``to`` instead of ``full``; None if it cannot."""
        shape = shape_of(other)
        if shape is None:
            return None
        if shape == full:
            return self._view(other, to)
        while shape and shape[0] == 1:
            shape = shape[1:]
        tail = len(shape)
        if tail == 0 or (shape == full[-tail:] and shape == to[-tail:]):
            return self._view(other, shape)
        split, shape = _split_axis(full, to), (*[1] * (len(full) - tail), *shape)
        if split is None or any(own not in (1, extent) for own, extent in zip(shape, full, strict=True)):
            return None
        parts = (1, 1) if shape[split] == 1 else to[split : split + 2]
        return self._view(other, (*shape[:split], *parts, *shape[split + 1 :]))

    def _rows(self, call: relax.Call) -> relax.Expr:
        inner, full = self._inner(call.args[0]), shape_of(call.args[0])
        own = shape_of(inner) if inner is not None else None
        axes = getattr(call.attrs, "axes", None)
        last = [int(x) for x in axes] if axes is not None else [int(call.attrs.axis)]
        if own is None or full is None or not own or own[-1] != full[-1] or last not in ([-1], [len(full) - 1]):
            return call
        name, rest = str(call.op.name), list(call.args[1:])
        if name == "relax.nn.softmax":
            return self._back(call, relax.op.nn.softmax(inner, -1))
        if name == "relax.nn.log_softmax":
            return self._back(call, relax.op.nn.log_softmax(inner, -1))
        if name == "relax.nn.rms_norm":
            return self._back(call, relax.op.nn.rms_norm(inner, *rest, axes=[-1], epsilon=float(call.attrs.epsilon)))
        attrs = call.attrs
        center, scale = bool(attrs.center), bool(attrs.scale)
        new = relax.op.nn.layer_norm(inner, *rest, axes=[-1], epsilon=float(attrs.epsilon), center=center, scale=scale)
        return self._back(call, new)

    def _inner(self, operand: relax.Expr) -> relax.Expr | None:
        """Return what a reshape was applied to, when an operand was made by one and all extents are known."""
        made = self.made_by(operand, "relax.reshape")
        if made is None or shape_of(made.args[0]) is None or shape_of(operand) is None:
            return None
        return made.args[0]

    def _view(self, operand: relax.Expr, shape: Shape) -> relax.Expr:
        """Return a view of that shape, without a reshape of a reshape."""
        if shape_of(operand) == shape:
            return operand
        inner = self._inner(operand)
        if inner is not None:
            return self._view(inner, shape)
        return self.builder_.emit(relax.op.reshape(operand, shape))

    def _back(self, call: relax.Call, new: relax.Expr) -> relax.Expr:
        """Return a view of a new value in the shape of the call that it replaces."""
        value = self.builder_.emit(new)
        shape = shape_of(call) or ()
        return value if shape_of(value) == shape else relax.op.reshape(value, shape)
