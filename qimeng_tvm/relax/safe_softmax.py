"""The softmax that gives zeros for a row of nothing but minus infinity, as one operator.

PyTorch writes attention with it, as eight operators: ``where(not any(x != -inf), 0, softmax(x))``.
"""

from __future__ import annotations

import tvm
from tvm import relax, te, tirx
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.rewriting import Rewriter, rewriting_pass, shape_of

#: Steps between the condition of ``where`` and the comparison with minus infinity.
_STEPS = ("relax.logical_not", "relax.max", "relax.astype", "relax.broadcast_to", "relax.reshape")


def fuse_safe_softmax() -> tvm.transform.Pass:
    """Return the pass that finds it."""
    return rewriting_pass("qimeng.FuseSafeSoftmax", _FuseSafeSoftmax)


@mutator
class _FuseSafeSoftmax(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name != "relax.where":
            return call
        condition, _, value = call.args
        softmax = self.made_by(value, "relax.nn.softmax")
        compared = self._compared(condition)
        if softmax is None or compared is None or shape_of(softmax) is None:
            return call
        source = softmax.args[0]
        last = int(softmax.attrs.axis) in (-1, len(shape_of(softmax) or ()) - 1)
        if not compared.same_as(source) or not last or str(source.ty.dtype) != "float32":
            return call
        return self.builder_.call_te(_te_safe_softmax, source, primfunc_name_hint="softmax")

    def _compared(self, condition: relax.Expr) -> relax.Expr | None:
        """Return what is compared with minus infinity."""
        for _ in range(12):
            made = self.bound(condition)
            if not isinstance(made, relax.Call) or not isinstance(made.op, tvm.ir.Op):
                return None
            name = str(made.op.name)
            if name == "relax.equal":
                return made.args[0]
            if name not in _STEPS:
                return None
            condition = made.args[0]
        return None


def _te_safe_softmax(x: te.Tensor) -> te.Tensor:
    *rows, columns = x.shape
    least = tirx.min_value("float32")
    k = te.reduce_axis((0, columns), name="k")
    # Not minus infinity: a row of it would give the difference of two infinities.
    high = te.compute(rows, lambda *i: te.max(x(*i, k), axis=k), name="T_softmax_maxelem")
    floor = te.compute(rows, lambda *i: tirx.Max(high(*i), least), name="floor")
    exp = te.compute(x.shape, lambda *i: tirx.exp(x(*i) - floor(*i[:-1])), name="T_softmax_exp")
    j = te.reduce_axis((0, columns), name="j")
    total = te.compute(rows, lambda *i: te.sum(exp(*i, j), axis=j), name="T_softmax_expsum")
    tiny = tirx.const(1e-30, "float32")
    return te.compute(x.shape, lambda *i: exp(*i) / tirx.Max(total(*i[:-1]), tiny), name="T_softmax_norm")
