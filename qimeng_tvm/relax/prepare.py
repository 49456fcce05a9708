"""The passes that every module takes to fused PrimFuncs: one operator's of the command line, and a whole model's."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from qimeng_tvm.relax.attention import decompose_attention
from qimeng_tvm.relax.canonical import order_operands, plain_operators, separate_operands
from qimeng_tvm.relax.clips import lift_clips
from qimeng_tvm.relax.flatten import flatten
from qimeng_tvm.relax.fold_scale import fold_scale
from qimeng_tvm.relax.layout import channels_last
from qimeng_tvm.relax.legalize import LEGALIZE
from qimeng_tvm.relax.masks import fold_masks
from qimeng_tvm.relax.mixed import narrow_contractions
from qimeng_tvm.relax.pointwise import pointwise
from qimeng_tvm.relax.quantized import integer_contractions
from qimeng_tvm.relax.safe_softmax import fuse_safe_softmax
from qimeng_tvm.relax.transposed import split_transposed
from qimeng_tvm.relax.transposes import fold_transposes

#: A view of memory as it is: the virtual machine makes it, and no loops.
_VIEWS = ("relax.reshape",)


def legalize_and_fuse(
    mod: tvm.IRModule, target: tvm.target.Target, dtype: str = "f32", *, late: Sequence[tvm.transform.Pass] = ()
) -> tvm.IRModule:
    """Take a Relax module, of one operator or of a whole model, to fused PrimFuncs.

    With ``dtype="bf16"`` products and convolutions of float32 take bfloat16 operands. ``late`` are passes for when all
    operators have the form that rules read: what the machine has a say in.

    One PrimFunc holds an anchor and its epilogue; transposed operands are read in place. Parameters after
    ``num_input`` and constants are marked ``layout_free_buffers`` in the PrimFuncs that read them.
    """
    with target:
        return tvm.transform.Sequential([*simplifying(), *rewriting(dtype), *late, *fusing()])(mod)


def simplifying() -> list[tvm.transform.Pass]:
    """Inference only: what training needs is taken apart and folded."""
    return [
        decompose_for_inference(),
        relax.transform.CanonicalizeBindings(),
    ]


def decompose_for_inference() -> tvm.transform.Pass:
    """Return TVM's pass for modules that it can take: it writes float32 into batch norms of any type."""

    @tvm.transform.module_pass(opt_level=0, name="qimeng.DecomposeForInference")  # type: ignore[untyped-decorator]
    def run(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return mod if _has_wide_batch_norm(mod) else relax.transform.DecomposeOpsForInference()(mod)

    return run


def _has_wide_batch_norm(mod: tvm.IRModule) -> bool:
    found: list[str] = []

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and str(getattr(expr.op, "name", "")) == "relax.nn.batch_norm":
            found.append(str(expr.args[0].ty.dtype))

    for function in mod.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return any(dtype != "float32" for dtype in found)


def rewriting(dtype: str = "f32") -> list[tvm.transform.Pass]:
    """Operators in the one form that rules read."""
    return [
        lift_clips(),
        plain_operators(),
        fold_masks(),
        *integer_contractions(),
        *channels_last(),
        fold_scale(),
        split_transposed(),
        pointwise(),
        fuse_safe_softmax(),
        decompose_attention(),
        order_operands(),
        flatten(),
        relax.transform.CanonicalizeBindings(),
        *(narrow_contractions() if dtype == "bf16" else []),
        separate_operands(),
        *fold_transposes(),
        relax.transform.DeadCodeElimination(),
    ]


def fusing() -> list[tvm.transform.Pass]:
    """Loops, one function for an anchor and what surrounds it."""
    return [
        relax.transform.LegalizeOps(dict(LEGALIZE), skip_ops=list(_VIEWS)),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        relax.transform.AttachAttrLayoutFreeBuffers(),
    ]
