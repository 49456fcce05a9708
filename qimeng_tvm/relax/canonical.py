"""One way to write what can be written in several: the same operator is then the same function, of the same records."""

from __future__ import annotations

import numpy as np
from tvm import ir, relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.constants import value_of
from qimeng_tvm.relax.rewriting import Rewriter, axes_of, is_constant, rank_of, rewriting_pass, shape_of

#: Not maximum and minimum: TVM's give the other operand when one is not a number, and that depends on the order.
_COMMUTATIVE = {"relax.add": relax.op.add, "relax.multiply": relax.op.multiply}


def order_operands() -> ir.transform.Pass:
    """Return the pass that writes ``x + bias`` where a front end writes ``bias + x``.

    Of the operands of a sum or a product, the one that is broadcast comes second, or else the constant. Floating-point
    numbers do not mind: both operators are commutative, if not associative.
    """
    return rewriting_pass("qimeng.OrderOperands", _OrderOperands)


def plain_operators() -> ir.transform.Pass:
    """Return the pass that rewrites what later passes would fail on, or make much of.

    One largest or smallest element is ``argmax`` or ``argmin``: PyTorch's maximum along an axis comes as ``topk``. Axes
    to be dropped are counted from the first: TVM's layout pass fails on others. An instance norm is one operator:
    ONNX's comes as nine.
    """
    return rewriting_pass("qimeng.PlainOperators", _PlainOperators)


@mutator
class _PlainOperators(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        rank = rank_of(call.args[0]) if call.args else -1
        if name == "relax.squeeze" and call.attrs.axis is not None and rank > 0:
            return relax.op.squeeze(call.args[0], [int(axis) % rank for axis in call.attrs.axis])
        if name == "relax.topk" and int(call.attrs.k) == 1 and rank > 0:
            return self._single(call, int(call.attrs.axis) % rank)
        if name == "relax.divide":
            return self._normalized(call)
        return call

    def _normalized(self, call: relax.Call) -> relax.Expr:
        """Return ``(x - mean(x)) / sqrt(variance(x) + epsilon)`` over all pixels of a channel as an instance norm."""
        left, root = self.made_by(call.args[0], "relax.subtract"), self.made_by(call.args[1], "relax.sqrt")
        shape = shape_of(call.args[0])
        total = self.made_by(root.args[0], "relax.add") if root is not None else None
        if left is None or total is None or shape is None or len(shape) < 3:
            return call
        data, mean = left.args[0], self.made_by(left.args[1], "relax.mean")
        variance, epsilon = self.made_by(total.args[0], "relax.variance"), value_of(self.bound(total.args[1]))
        pixels = list(range(2, len(shape)))
        if mean is None or variance is None or epsilon is None or epsilon.size != 1:
            return call
        same = all(
            made.args[0].same_as(data) and list(map(int, made.attrs.axis)) == pixels for made in (mean, variance)
        )
        if not same or str(data.ty.dtype) != "float32":
            return call
        scale, shift = (relax.const(make(shape[1], "float32")) for make in (np.ones, np.zeros))
        return relax.op.nn.instance_norm(data, scale, shift, 1, pixels, float(epsilon.reshape(-1)[0]))

    def _single(self, call: relax.Call, axis: int) -> relax.Expr:
        attrs, data, emit = call.attrs, call.args[0], self.builder_.emit
        find = relax.op.argmax if bool(attrs.largest) else relax.op.argmin
        place, kind = emit(find(data, axis, True)), str(attrs.ret_type)
        # Not the maximum: where something is no number, PyTorch gives that.
        value = emit(relax.op.gather_elements(data, place, axis)) if kind != "indices" else None
        same = str(place.ty.dtype) == str(attrs.dtype)
        index = place if same or kind == "values" else emit(relax.op.astype(place, str(attrs.dtype)))
        return value if kind == "values" else index if kind == "indices" else relax.Tuple([value, index])


def separate_operands() -> ir.transform.Pass:
    """Return the pass that gives a product of a tensor with itself two operands.

    Fusing makes one parameter of them, and packing could not tell which of them it packs. A view costs nothing.
    """
    return rewriting_pass("qimeng.SeparateOperands", _SeparateOperands)


@mutator
class _SeparateOperands(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name != "relax.matmul":
            return call
        moved = self.made_by(call.args[1], "relax.permute_dims")
        first, second = (
            made.args[0] if (made := self.made_by(x, "relax.permute_dims")) is not None else x for x in call.args
        )
        shape = shape_of(second)
        if shape is None or not first.same_as(second):
            return call
        view = self.builder_.emit(relax.op.reshape(second, shape))
        other = view if moved is None else self.builder_.emit(relax.op.permute_dims(view, axes_of(moved)))
        return relax.op.matmul(call.args[0], other, out_dtype=call.attrs.out_dtype)


@mutator
class _OrderOperands(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        again = _COMMUTATIVE.get(name)
        if again is None:
            return call
        left, right = call.args
        ranks = rank_of(left), rank_of(right)
        if ranks[0] < ranks[1] or (ranks[0] == ranks[1] and is_constant(left) and not is_constant(right)):
            return again(right, left)
        return call
