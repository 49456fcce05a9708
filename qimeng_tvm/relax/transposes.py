"""Products that read a permuted operand where it lies, and write their result in the order that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax, te
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.rewriting import Rewriter, axes_of, rewriting_pass, shape_of

#: An operand as stored, and where each of its axes as the product wants them is stored.
Stored = tuple[relax.Expr, tuple[int, ...]]


def fold_transposes() -> list[tvm.transform.Pass]:
    """Return the passes that let a matmul read permuted operands where they lie, and write a permuted result.

    ``FuseOps`` never fuses an injective producer into a contraction, so that ``matmul(permute_dims(x), y)`` would copy
    x at run time, and hide from ``AttachAttrLayoutFreeBuffers`` that x is a weight.
    """
    return [
        # What is read no more must not count as a use.
        relax.transform.DeadCodeElimination(),
        rewriting_pass("qimeng.FoldResultTransposes", _FoldResultTransposes),
        relax.transform.DeadCodeElimination(),
        rewriting_pass("qimeng.FoldTransposes", _FoldTransposes),
    ]


class _Products(Rewriter):
    """What both passes share: a matmul as loops over its operands as stored."""

    def product(self, matmul: relax.Call, order: Sequence[int] | None) -> relax.Expr | None:
        """Return the product with the axes of its result in that order; None when it stays as it is."""
        (left, a), (right, b) = (self._stored(operand) for operand in matmul.args)
        if shape_of(left) is None or shape_of(right) is None or len(a) < 2 or len(b) < 2:
            return None
        if order is None and a == tuple(range(len(a))) and b == tuple(range(len(b))):
            return None
        layout = "nt"[a[-1] < a[-2]] + "nt"[b[-1] < b[-2]]
        return self.builder_.call_te(
            _te_matmul, left, right, a, b, str(matmul.ty.dtype), order, primfunc_name_hint=f"matmul_{layout}"
        )

    def _stored(self, operand: relax.Expr) -> Stored:
        """Return what a permutation was applied to, and where it put the axes; or the operand itself."""
        made = self.permuted(operand)
        if made is not None:
            return made.args[0], tuple(axes_of(made))
        return operand, tuple(range(len(shape_of(operand) or ())))


@mutator
class _FoldTransposes(_Products):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        found = self.product(call, None) if name == "relax.matmul" else None
        return call if found is None else found


@mutator
class _FoldResultTransposes(_Products):
    def transform(self) -> tvm.IRModule:
        self._uses = _uses(self.mod)
        return super().transform()

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        self._once = bool(call.args) and self._uses.get(call.args[0], 0) == 1
        return super().visit_call_(call)

    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name != "relax.permute_dims":
            return call
        matmul, order = self.made_by(call.args[0], "relax.matmul"), axes_of(call)
        # A row of the result must stay one; and who else reads it wants it as it was.
        if matmul is None or order[-1] != len(order) - 1 or not self._once:
            return call
        found = self.product(matmul, order)
        return call if found is None else found


def _uses(mod: tvm.IRModule) -> dict[relax.Expr, int]:
    """Return how often each variable of a module is used."""
    found: dict[relax.Expr, int] = {}

    def visit(expr: relax.Expr) -> None:
        read = (
            list(expr.args) if isinstance(expr, relax.Call) else [expr.body] if isinstance(expr, relax.SeqExpr) else []
        )
        read += list(expr.fields) if isinstance(expr, relax.Tuple) else []
        for value in read:
            if isinstance(value, relax.Var):
                found[value] = found.get(value, 0) + 1

    for function in mod.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return found


def _te_matmul(
    a: te.Tensor, b: te.Tensor, a_axes: Sequence[int], b_axes: Sequence[int], dtype: str, order: Sequence[int] | None
) -> te.Tensor:
    """Batched, broadcast matrix product of operands as stored, accumulated in ``dtype``.

    ``a_axes[i]`` is where axis i of A is stored; the result has its axes in ``order``.
    """
    a_shape, b_shape = [a.shape[i] for i in a_axes], [b.shape[i] for i in b_axes]
    k = te.reduce_axis((0, a_shape[-1]), name="k")
    rank = max(len(a_shape), len(b_shape)) - 2
    batch = [max(_extent(a_shape, i, rank), _extent(b_shape, i, rank)) for i in range(rank)]
    shape = [*batch, a_shape[-2], b_shape[-1]]
    kept = list(range(len(shape))) if order is None else list(order)

    def read(operand: te.Tensor, stored: Sequence[int], outer: Sequence[Any], plane: tuple[Any, Any]) -> Any:
        extents = [operand.shape[i] for i in stored]
        own = range(rank - (len(extents) - 2), rank)
        wanted = [*(outer[i] if _extent(extents, i, rank) == batch[i] else 0 for i in own), *plane]
        return operand(*(wanted[stored.index(i)] for i in range(len(stored)))).astype(dtype)

    def element(*axes: Any) -> Any:
        at = [axes[kept.index(i)] for i in range(len(kept))]
        i, j = at[-2:]
        return te.sum(read(a, a_axes, at, (i, k)) * read(b, b_axes, at, (k, j)), axis=k)

    return te.compute([shape[i] for i in kept], element, name="matmul")


def _extent(extents: Sequence[Any], axis: int, rank: int) -> int:
    """Extent of a batch axis counted among ``rank``, 1 where the operand lacks it."""
    own = axis - (rank - (len(extents) - 2))
    return int(extents[own]) if own >= 0 else 1
