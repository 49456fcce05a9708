"""One way to write what can be written in several: the same operator is then the same function, of the same records."""

from __future__ import annotations

from tvm import ir, relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.rewriting import Rewriter, is_constant, rank_of, rewriting_pass

#: Not maximum and minimum: TVM's give the other operand when one is not a number, and that depends on the order.
_COMMUTATIVE = {"relax.add": relax.op.add, "relax.multiply": relax.op.multiply}


def order_operands() -> ir.transform.Pass:
    """Return the pass that writes ``x + bias`` where a front end writes ``bias + x``.

    Of the operands of a sum or a product, the one that is broadcast comes second, or else the constant. Floating-point
    numbers do not mind: both operators are commutative, if not associative.
    """
    return rewriting_pass("qimeng.OrderOperands", _OrderOperands)


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
