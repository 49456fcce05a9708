"""Convolutions by Winograd's method of filters that are transformed already, as a step of a graph.

In a model a late pass chooses the method; here it is asked for, and a late pass writes its loops.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator
from tvm.script import relax as R

from qimeng_tvm.relax.legalize.conv2d import FUSES
from qimeng_tvm.relax.rewriting import Rewriter, rewriting_pass
from qimeng_tvm.relax.winograd import te_winograd
from qimeng_tvm.schedule.winograd_form import TAPS

#: What stands for the convolution until the late pass.
_NAME = "qimeng.winograd"


def winograd_call(image: relax.Expr, filters: relax.Expr, padding: tuple[int, int, int, int]) -> relax.Call:
    """Return a call that stands for the convolution of NHWC pixels; no other pass changes it."""
    images, height, width, _ = (int(x) for x in image.ty.shape)
    top, left, bottom, right = padding
    out = (images, height + top + bottom - TAPS + 1, width + left + right - TAPS + 1, int(filters.ty.shape[2]))
    told = relax.ShapeExpr(padding)
    return relax.op.call_dps_packed(_NAME, [image, filters, told], R.Tensor(out, str(image.ty.dtype)))


def winograd_loops() -> tvm.transform.Pass:
    """Return the pass that makes loops of these calls."""
    return rewriting_pass("qimeng.WinogradLoops", _WinogradLoops)


@mutator
class _WinogradLoops(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name != "relax.call_dps_packed" or str(call.args[0].global_symbol) != _NAME:
            return call
        image, filters, padding = call.args[1]
        told = tuple(int(p) for p in padding.values)
        return self.builder_.call_te(
            te_winograd, image, filters, padding=told, primfunc_name_hint="winograd", primfunc_attrs=FUSES
        )
