"""Attention as the two products and the softmax that it is, for the rules of these."""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.grouped import group_heads
from qimeng_tvm.relax.rewriting import Rewriter, rewriting_pass, shape_of

_OPERATORS = ("relax.nn.attention", "relax.nn.attention_bias")


def decompose_attention() -> tvm.transform.Pass:
    """Return the pass that takes ``nn.attention`` of known shapes apart.

    Queries, keys and values come as (batch, sequence, heads, width). The transposes that bring heads outside are
    folded into the products afterwards. Where there are fewer heads of keys and values than of queries, the products
    are taken on these.
    """
    return tvm.transform.Sequential([rewriting_pass("qimeng.DecomposeAttention", _DecomposeAttention), group_heads()])


@mutator
class _DecomposeAttention(Rewriter):
    def rewrite(self, call: relax.Call, name: str) -> relax.Expr:
        if name not in _OPERATORS:
            return call
        query, key, value = call.args[:3]
        shape, keys = shape_of(query), shape_of(key)
        if shape is None or keys is None or shape[2] % keys[2]:
            return call
        if getattr(call.attrs, "window_size", None) is not None:
            return call
        emit, permute = self.builder_.emit, relax.op.permute_dims
        dtype = str(query.ty.dtype)
        scale = float(call.attrs.scale) if call.attrs.scale is not None else 1.0 / math.sqrt(shape[-1])
        columns, rows = emit(permute(key, [0, 2, 3, 1])), emit(permute(value, [0, 2, 1, 3]))
        if shape[2] != keys[2]:
            columns, rows = (emit(relax.op.repeat(x, shape[2] // keys[2], 1)) for x in (columns, rows))
        scores = emit(relax.op.matmul(emit(permute(query, [0, 2, 1, 3])), columns))
        scores = emit(relax.op.multiply(scores, relax.const(scale, dtype)))
        if len(call.args) > 3:
            scores = emit(relax.op.add(scores, call.args[3]))
        causal = call.attrs.causal_mask
        if causal is not None:
            scores = emit(relax.op.add(scores, _causal(str(causal), shape[1], keys[1], dtype)))
        weights = emit(relax.op.nn.softmax(scores, -1))
        return permute(emit(relax.op.matmul(weights, rows)), [0, 2, 1, 3])


def _causal(kind: str, rows: int, columns: int, dtype: str) -> relax.Expr:
    """Return what is added to the scores: 0 where a query may look, minus infinity where it may not."""
    diagonal = columns - rows if kind == "BottomRight" else 0
    allowed = np.tril(np.ones((rows, columns), bool), diagonal)
    return relax.const(np.where(allowed, 0.0, -np.inf).astype(dtype))
