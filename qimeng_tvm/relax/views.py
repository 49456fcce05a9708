"""Results that are views of what was computed: without a copy."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.rewriting import Rewriter, rewriting_pass

_RESHAPE = "relax.reshape"


def return_views() -> tvm.transform.Pass:
    """Return the pass that keeps TVM from copying a result for its shape's sake.

    Reshapes inside a dataflow block become views of memory; those that leave it TVM computes, as loops. Here a reshape
    stays inside, and what leaves is its name. A view of an argument or a constant is copied all the same: they are not
    the caller's to write to.
    """
    return rewriting_pass("qimeng.ReturnViews", _Views)


@mutator
class _Views(Rewriter):
    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.BindingBlock:
        self.builder_._begin_dataflow_block()
        made = {b.var: b.value for b in block.bindings if isinstance(b, relax.VarBinding)}
        for binding in block.bindings:
            leaves = not isinstance(binding.var, relax.DataflowVar)
            if leaves and binding.var in made and _is_view(made[binding.var]) and _is_computed(binding.var, made):
                view = self.builder_.emit(self.visit_expr(binding.value))
                self.builder_.emit_normalized(relax.VarBinding(self.visit_var_def(binding.var), view))
            else:
                self.visit_binding(binding)
        return self.builder_._end_block()


def _is_view(value: relax.Expr) -> bool:
    return isinstance(value, relax.Call) and str(getattr(value.op, "name", "")) == _RESHAPE


def _is_computed(operand: relax.Expr, made: dict[relax.Var, relax.Expr]) -> bool:
    """Tell whether what an operand is a view of comes out of this block."""
    while operand in made:
        value = made[operand]
        if not (_is_view(value) or isinstance(value, relax.Var)):
            return not isinstance(value, GenericConst)
        operand = value.args[0] if _is_view(value) else value
    return False
