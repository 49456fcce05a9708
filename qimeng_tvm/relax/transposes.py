"""Products that read a transposed operand where it lies."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, te
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.rewriting import Rewriter, axes_of, rank_of, rewriting_pass, shape_of


def fold_transposes() -> tvm.transform.Pass:
    """Return the pass that lets a matmul read an operand transposed in its last two axes where it lies.

    ``FuseOps`` never fuses an injective producer into a contraction, so that ``matmul(permute_dims(x), y)`` would copy
    x at run time, and hide from ``AttachAttrLayoutFreeBuffers`` that x is a weight.
    """
    return rewriting_pass("qimeng.FoldTransposes", _FoldTransposes)


@mutator
class _FoldTransposes(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name != "relax.matmul":
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
        bound = self.made_by(operand, "relax.permute_dims")
        if bound is None:
            return operand, False
        rank = rank_of(bound.args[0])
        if rank < 2:
            return operand, False
        swapped = [*range(rank - 2), rank - 1, rank - 2]
        return (bound.args[0], True) if axes_of(bound) == swapped else (operand, False)


def _static(operand: relax.Expr) -> bool:
    shape = shape_of(operand)
    return shape is not None and len(shape) >= 2


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
