"""An operator as a one-op Relax module.

The numbers side is :mod:`qimeng_tvm.numerics` (inputs, oracle, tolerance) and :mod:`qimeng_tvm.comparison`, which do
not need TVM; their public names are re-exported here.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.script import relax as R

from qimeng_tvm.comparison import Comparison, Reference, compare, reference
from qimeng_tvm.errors import BuildError
from qimeng_tvm.numerics import bytes_moved, flops, make_inputs, oracle, tolerance
from qimeng_tvm.relax.prepare import legalize_and_fuse
from qimeng_tvm.request import Request, validate

__all__ = [
    "Comparison",
    "Reference",
    "bytes_moved",
    "compare",
    "flops",
    "legalize_and_fuse",
    "make_inputs",
    "oracle",
    "prim_func",
    "reference",
    "relax_module",
    "tolerance",
]


def relax_module(request: Request) -> tvm.IRModule:
    """Return the request as a Relax module with one function, ``main(A, B[, bias])``.

    Operands have their stored shapes (``request.a_shape``, ``request.b_shape``); the bias is a vector of N in the
    accumulator's dtype. Products are accumulated in float32 or int32, the epilogue works on that, and a bfloat16
    result is rounded once, at the end. With ``constant_b`` the parameters after A are weights: ``num_input`` is 1, so
    that ``LiftTransformParams`` moves their packing into a function of its own.
    """
    validate(request)
    a = relax.Var("A", R.Tensor(request.a_shape, request.a_dtype))
    b = relax.Var("B", R.Tensor(request.b_shape, request.b_dtype))
    bias = relax.Var("bias", R.Tensor((request.n,), request.acc_dtype))
    params = [a, b, *([bias] if "bias" in request.epilogue else [])]
    swap = [0, 2, 1] if request.batch > 1 else [1, 0]
    builder = relax.BlockBuilder()
    with builder.function("main", params, attrs={"num_input": 1} if request.constant_b else None):
        with builder.dataflow():
            left = builder.emit(relax.op.permute_dims(a, swap)) if request.transpose_a else a
            right = builder.emit(relax.op.permute_dims(b, swap)) if request.transpose_b else b
            value = builder.emit(relax.op.matmul(left, right, out_dtype=request.acc_dtype))
            for name in request.epilogue:
                value = builder.emit(relax.op.add(value, bias) if name == "bias" else relax.op.nn.relu(value))
            if request.out_dtype != request.acc_dtype:
                value = builder.emit(relax.op.astype(value, request.out_dtype))
            result = builder.emit_output(value)
        builder.emit_func_output(result)
    return builder.finalize()


def prim_func(request: Request, target: tvm.target.Target) -> tuple[str, tvm.tirx.PrimFunc]:
    """Return the single fused PrimFunc of a request, and its name in the module.

    Raises
    ------
    BuildError
        If the passes did not leave exactly one PrimFunc.
    """
    mod = legalize_and_fuse(relax_module(request), target)
    found = [(gv.name_hint, f) for gv, f in mod.functions.items() if isinstance(f, tvm.tirx.PrimFunc)]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise BuildError(f"{request.operator} was not fused into one function ({names}); report this request as a bug")
    return found[0]
