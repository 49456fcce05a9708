"""One way to write what can be written in several: the same operator is then the same function, of the same records."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

#: Not maximum and minimum: TVM's give the other operand when one is not a number, and that depends on the order.
_COMMUTATIVE = {"relax.add": relax.op.add, "relax.multiply": relax.op.multiply}


def order_operands() -> tvm.transform.Pass:
    """Return the pass that writes ``x + bias`` where a front end writes ``bias + x``.

    Of the operands of a sum or a product, the one that is broadcast comes second, or else the constant. Floating-point
    numbers do not mind: both operators are commutative, if not associative.
    """

    @tvm.transform.module_pass(opt_level=0, name="qimeng.OrderOperands")  # type: ignore[untyped-decorator]
    def run(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return _OrderOperands(mod).transform()

    return run


@mutator
class _OrderOperands(PyExprMutator):  # type: ignore[misc]
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.mod = mod

    def transform(self) -> tvm.IRModule:
        for gv, function in self.mod.functions.items():
            if isinstance(function, relax.Function) and "Primitive" not in (function.attrs or {}):
                self.builder_.update_func(gv, self.visit_expr(function))
        return self.builder_.get()

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        again = _COMMUTATIVE.get(str(call.op.name)) if isinstance(call.op, tvm.ir.Op) else None
        if again is None:
            return call
        left, right = call.args
        if _rank(left) < _rank(right) or (_rank(left) == _rank(right) and _constant(left) and not _constant(right)):
            return again(right, left)
        return call


def _constant(operand: relax.Expr) -> bool:
    return isinstance(operand, GenericConst)


def _rank(operand: relax.Expr) -> int:
    return int(getattr(operand.ty, "ndim", -1))
