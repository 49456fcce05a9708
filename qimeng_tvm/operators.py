"""An operator as a one-op Relax module, and the passes that every module takes to reach PrimFuncs.

The numbers side is :mod:`qimeng_tvm.numerics` (inputs, oracle, tolerance) and :mod:`qimeng_tvm.comparison`, which do
not need TVM; their public names are re-exported here.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, te
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.script import relax as R

from qimeng_tvm.comparison import Comparison, Reference, compare, reference
from qimeng_tvm.errors import BuildError
from qimeng_tvm.numerics import bytes_moved, flops, make_inputs, oracle, tolerance
from qimeng_tvm.relax.canonical import order_operands
from qimeng_tvm.request import Request, validate

__all__ = [
    "Comparison",
    "Reference",
    "bytes_moved",
    "compare",
    "flops",
    "fold_transposes",
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


def legalize_and_fuse(mod: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """Take a Relax module, of one operator or of a whole model, to fused PrimFuncs.

    One PrimFunc holds an anchor contraction and its epilogue; transposed operands are read in place. Parameters after
    ``num_input`` and constants are marked ``layout_free_buffers`` in the PrimFuncs that read them.
    """
    passes = [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        order_operands(),
        fold_transposes(),
        relax.transform.DeadCodeElimination(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        relax.transform.AttachAttrLayoutFreeBuffers(),
    ]
    with target:
        return tvm.transform.Sequential(passes)(mod)


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


def fold_transposes() -> tvm.transform.Pass:
    """Return the pass that lets a matmul read an operand transposed in its last two axes where it lies.

    ``FuseOps`` never fuses an injective producer into a contraction, so that ``matmul(permute_dims(x), y)`` would copy
    x at run time, and hide from ``AttachAttrLayoutFreeBuffers`` that x is a weight.
    """

    @tvm.transform.module_pass(opt_level=0, name="qimeng.FoldTransposes")  # type: ignore[untyped-decorator]
    def run(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return _FoldTransposes(mod).transform()

    return run


@mutator
class _FoldTransposes(PyExprMutator):  # type: ignore[misc]
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
        if call.op != tvm.ir.Op.get("relax.matmul"):
            return call
        left, transposed_a = self._stored(call.args[0])
        right, transposed_b = self._stored(call.args[1])
        if not (transposed_a or transposed_b) or not (_static(left) and _static(right)):
            return call
        layout = "nt"[transposed_a] + "nt"[transposed_b]
        return self.builder_.call_te(
            _te_matmul,
            left,
            right,
            transposed_a,
            transposed_b,
            str(call.ty.dtype),
            primfunc_name_hint=f"matmul_{layout}",
        )

    def _stored(self, operand: relax.Expr) -> tuple[relax.Expr, bool]:
        """Return what a swap of the last two axes was applied to and True, or the operand itself and False."""
        bound = self.lookup_binding(operand) if isinstance(operand, relax.Var) else operand
        if not isinstance(bound, relax.Call) or bound.op != tvm.ir.Op.get("relax.permute_dims"):
            return operand, False
        rank = bound.args[0].ty.ndim
        if rank < 2:
            return operand, False
        axes = [int(axis) for axis in bound.attrs.axes] if bound.attrs.axes is not None else list(range(rank))[::-1]
        swapped = [*range(rank - 2), rank - 1, rank - 2]
        return (bound.args[0], True) if axes == swapped else (operand, False)


def _static(operand: relax.Expr) -> bool:
    shape = operand.ty.shape
    return shape is not None and len(shape) >= 2 and all(isinstance(d, tvm.tirx.IntImm) for d in shape)


def _te_matmul(a: te.Tensor, b: te.Tensor, transposed_a: bool, transposed_b: bool, dtype: str) -> te.Tensor:
    """Batched, broadcast matrix product of operands as stored, accumulated in ``dtype``."""
    m = a.shape[-1] if transposed_a else a.shape[-2]
    k = te.reduce_axis((0, a.shape[-2] if transposed_a else a.shape[-1]), name="k")
    n = b.shape[-2] if transposed_b else b.shape[-1]
    rank = max(len(a.shape), len(b.shape)) - 2
    batch = [max(_extent(a, i, rank), _extent(b, i, rank)) for i in range(rank)]

    def read(operand: te.Tensor, axes: tuple[Any, ...], plane: tuple[Any, Any], transposed: bool) -> Any:
        own = range(rank - (len(operand.shape) - 2), rank)
        outer = [axes[i] if _extent(operand, i, rank) == batch[i] else 0 for i in own]
        return operand(*outer, *(reversed(plane) if transposed else plane)).astype(dtype)

    def element(*axes: Any) -> Any:
        i, j = axes[-2:]
        return te.sum(read(a, axes, (i, k), transposed_a) * read(b, axes, (k, j), transposed_b), axis=k)

    return te.compute((*batch, m, n), element, name="matmul")


def _extent(operand: te.Tensor, axis: int, rank: int) -> int:
    """Extent of a batch axis counted among ``rank``, 1 where the operand lacks it."""
    own = axis - (rank - (len(operand.shape) - 2))
    return int(operand.shape[own]) if own >= 0 else 1
