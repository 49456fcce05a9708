"""Tensors of one number: TVM's own definition fails on every one."""

from __future__ import annotations

from tvm import relax, te, tirx

from qimeng_tvm.relax.constants import value_of
from qimeng_tvm.relax.legalize.images import stock
from qimeng_tvm.relax.rewriting import shape_of


def full(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return ``relax.full`` of a known shape and number as a call of loops."""
    shape, value = shape_of(call), value_of(call.args[1])
    if shape is None or value is None:
        return stock(builder, call)
    number = tirx.const(value.reshape(-1)[0].item(), str(call.ty.dtype))
    return builder.call_te(lambda: te.compute(shape, lambda *_: number, name="full"), primfunc_name_hint="full")
