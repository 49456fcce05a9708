"""The skeleton of passes that rewrite calls of operators in Relax functions, one call at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator


class Rewriter(PyExprMutator):  # type: ignore[misc]
    """Visits every function of a module; a subclass (decorated with ``@mutator``) says what becomes of a call.

    Fused functions (attribute ``Primitive``) are left as they are.
    """

    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.mod = mod

    def transform(self) -> tvm.IRModule:
        """Return the rewritten module."""
        for gv, function in self.mod.functions.items():
            if isinstance(function, relax.Function) and "Primitive" not in (function.attrs or {}):
                self.builder_.update_func(gv, self.visit_expr(function))
        return self.builder_.get()

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Rewrite what a call is made of, then the call."""
        call = self.visit_expr_post_order(call)
        return self.rewrite(call, str(call.op.name)) if isinstance(call.op, tvm.ir.Op) else call

    def rewrite(self, call: relax.Call, _name: str) -> relax.Expr:
        """Return what takes a call's place; the call itself when it stays.

        Parameters
        ----------
        call : relax.Call
            Of an operator; its arguments are rewritten already.
        _name : str
            The operator, such as ``relax.matmul``.
        """
        return call

    def bound(self, operand: relax.Expr) -> relax.Expr:
        """Return what an operand was made by, or the operand itself where that is not known."""
        while isinstance(operand, relax.Var):
            value = self.lookup_binding(operand)
            if value is None:
                break
            operand = value
        return operand

    def made_by(self, operand: relax.Expr, name: str) -> relax.Call | None:
        """Return the call of that operator that made an operand, or None."""
        value = self.bound(operand)
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) and str(value.op.name) == name:
            return value
        return None

    def permuted(self, operand: relax.Expr) -> relax.Call | None:
        """Return the permutation that made an operand, when all extents are known."""
        made = self.made_by(operand, "relax.permute_dims")
        return made if made is not None and shape_of(made.args[0]) is not None else None


class CountingRewriter(Rewriter):
    """A rewriter that knows how often each variable of a function is read: what is used elsewhere too stays."""

    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.uses: Counter[relax.Var] = Counter()

    def visit_function_(self, function: relax.Function) -> relax.Expr:
        """Count uses first: what is used elsewhere too would be computed twice."""
        self.uses.clear()
        relax.analysis.post_order_visit(function.body, self._count)
        return super().visit_function_(function)

    def _count(self, expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call):
            self.uses.update(x for x in expr.args if isinstance(x, relax.Var))
        elif isinstance(expr, relax.Tuple):
            self.uses.update(x for x in expr.fields if isinstance(x, relax.Var))
        elif isinstance(expr, relax.SeqExpr) and isinstance(expr.body, relax.Var):
            self.uses[expr.body] += 1


def rewriting_pass(name: str, rewriter: type[Rewriter]) -> tvm.transform.Pass:
    """Return a module pass that runs a rewriter."""

    @tvm.transform.module_pass(opt_level=0, name=name)  # type: ignore[untyped-decorator]
    def run(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return rewriter(mod).transform()

    return run


def shape_of(operand: relax.Expr) -> tuple[int, ...] | None:
    """Return an operand's extents; None when they are not all known."""
    shape: Any = getattr(operand.ty, "shape", None)
    if shape is None or not hasattr(shape, "__len__") or not all(isinstance(d, tirx.IntImm) for d in shape):
        return None
    return tuple(int(d) for d in shape)


def rank_of(operand: relax.Expr) -> int:
    """Return an operand's number of axes; -1 when that is not known."""
    return int(getattr(operand.ty, "ndim", -1))


def is_constant(operand: relax.Expr) -> bool:
    """Tell whether an operand is a constant tensor."""
    return isinstance(operand, GenericConst)


def axes_of(call: relax.Call) -> Sequence[int]:
    """Return the axes of a ``permute_dims``, the reverse order where it names none."""
    rank = rank_of(call.args[0])
    return [int(axis) for axis in call.attrs.axes] if call.attrs.axes is not None else list(range(rank))[::-1]
