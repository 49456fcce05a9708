"""Products and convolutions of bfloat16 operands, summed up in float32; all else is computed in float32.

What a product reads is rounded once, where it is made, and stored as bfloat16 only: the rounding joins the epilogue of
the function that makes it, and half of the memory is moved. Sums that read the same value widen it in theirs.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from qimeng_tvm.relax.constants import value_of
from qimeng_tvm.relax.rewriting import Rewriter, rewriting_pass, shape_of

_WIDE, _NARROW = "float32", "bfloat16"
#: Operators that only move elements; a cast is the same before and behind them.
_MOVES = ("relax.permute_dims", "relax.reshape", "relax.strided_slice")
#: Operators that join the function of what they read, and widen it there at no cost.
_SUMS = frozenset(f"relax.{name}" for name in "add divide maximum minimum multiply subtract".split())


def narrow_contractions() -> list[tvm.transform.Pass]:
    """Return the passes that give products and convolutions of known shapes bfloat16 operands.

    Depthwise convolutions stay as they are: no instruction sums up products of theirs.
    """
    return [rewriting_pass("qimeng.NarrowContractions", _Narrow), relax.transform.DeadCodeElimination()]


def _name(call: Any) -> str:
    """Return the operator of a call; nothing for other expressions."""
    return str(call.op.name) if isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.Op) else ""


def _is_contraction(call: Any) -> bool:
    """Tell whether a call is a product or convolution that takes narrow operands."""
    name = _name(call)
    if name not in ("relax.matmul", "relax.nn.conv2d"):
        return False
    known = (*call.args, call)
    if any(shape_of(x) is None or str(x.ty.dtype) != _WIDE for x in known):
        return False
    if name == "relax.matmul":
        return all(len(shape_of(x) or ()) > 1 for x in call.args)
    filters = shape_of(call.args[1]) or ()
    return int(call.attrs.groups) == 1 or filters[str(call.attrs.kernel_layout).index("I")] > 1


@mutator
class _Narrow(Rewriter):
    def visit_function_(self, function: relax.Function) -> relax.Expr:
        """Find what is stored narrow first: all readers of a value must agree."""
        self._values = dict(relax.analysis.get_var2val(function).items())
        self._readers = self._readers_in(function)
        sources = [self._source(x) for value in self._values.values() if _is_contraction(value) for x in value.args]
        made = [x for x in sources if isinstance(x, relax.Var) and x in self._values]
        self._stored = {x for x in made if self._widens_everywhere(x)}
        self._narrow: dict[relax.Var, relax.Expr] = {}
        return super().visit_function_(function)

    def _readers_in(self, function: relax.Function) -> dict[relax.Var, list[relax.Var | None]]:
        """Return, for each variable, those made of it by an operator; None stands for another use."""
        readers: dict[relax.Var, list[relax.Var | None]] = defaultdict(list)
        for var, value in self._values.items():
            direct = [x for x in value.args if isinstance(x, relax.Var)] if _name(value) else []
            for operand in direct:
                readers[operand].append(var)
            relax.analysis.post_order_visit(value, lambda x, direct=direct: _note(readers, x, direct))
        relax.analysis.post_order_visit(
            function, lambda x: _note(readers, x.body, ()) if isinstance(x, relax.SeqExpr) else None
        )
        return readers

    def _widens_everywhere(self, var: relax.Var) -> bool:
        """Tell whether all readers of a value take it narrow, or widen it at no cost."""
        for reader in self._readers[var]:
            value = self._values[reader] if reader is not None else None
            if _name(value) in _MOVES:
                if not self._widens_everywhere(reader):
                    return False
            elif not _is_contraction(value) and _name(value) not in _SUMS:
                return False
        return True

    def _source(self, operand: relax.Expr) -> relax.Expr:
        """Return what an operand is, but for its order and shape."""
        while isinstance(operand, relax.Var):
            value: Any = self._values.get(operand)
            if not self._is_moved(value):
                break
            operand = value.args[0]
        return operand

    def _is_moved(self, value: Any) -> bool:
        """Tell whether a cast goes before a move: not where a product writes its result in that order."""
        if _name(value) == "relax.permute_dims" and _name(self._values.get(value.args[0])) == "relax.matmul":
            return False
        return _name(value) in _MOVES

    def visit_binding_block_(self, block: relax.BindingBlock) -> relax.BindingBlock:
        """Forget casts at the end of a block: they are not known outside."""
        outer, self._narrow = self._narrow, {}
        try:
            return super().visit_binding_block_(block)
        finally:
            self._narrow = outer

    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.DataflowBlock:
        """As of any other block."""
        outer, self._narrow = self._narrow, {}
        try:
            return super().visit_dataflow_block_(block)
        finally:
            self._narrow = outer

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Give a contraction narrow operands, and a sum what is stored narrow."""
        if _is_contraction(call):
            return _contraction(call, [self._narrowed(x) for x in call.args])
        if _name(call) in _SUMS:
            return relax.Call(call.op, [self._widened(x) for x in call.args], call.attrs)
        return super().visit_call_(call)

    def _widened(self, operand: relax.Expr) -> relax.Expr:
        """Return an operand as float32; what is stored narrow is read so, right where it is used."""
        source = self._source(operand)
        if not isinstance(source, relax.Var) or source not in self._stored:
            return self.visit_expr(operand)
        return self.builder_.emit(relax.op.astype(self._narrowed(operand), _WIDE))

    def _narrowed(self, operand: relax.Expr) -> relax.Expr:
        """Return an operand as bfloat16; the same one each time."""
        value: Any = self._values.get(operand) if isinstance(operand, relax.Var) else operand
        constant = value_of(value) if value is not None else None
        if constant is not None:
            return relax.const(constant.astype(_NARROW))
        if operand not in self._narrow:
            if self._is_moved(value):
                new = relax.Call(value.op, [self._narrowed(value.args[0]), *value.args[1:]], value.attrs)
            else:
                new = relax.op.astype(self.visit_expr(operand), _NARROW)
            self._narrow[operand] = self.builder_.emit(new)
        return self._narrow[operand]


def _note(readers: dict[relax.Var, list[relax.Var | None]], expr: relax.Expr, direct: Any) -> None:
    """Note other uses of variables: in tuples, and as results."""
    used = expr.fields if isinstance(expr, relax.Tuple) else [expr]
    for x in used:
        if isinstance(x, relax.Var) and not any(x.same_as(d) for d in direct):
            readers[x].append(None)


def _contraction(call: relax.Call, operands: list[relax.Expr]) -> relax.Expr:
    """Return a contraction of other operands, summed up in float32."""
    if _name(call) == "relax.matmul":
        return relax.op.matmul(*operands, out_dtype=_WIDE)
    attrs = call.attrs
    return relax.op.nn.conv2d(
        *operands,
        strides=[int(x) for x in attrs.strides],
        padding=[int(x) for x in attrs.padding],
        dilation=[int(x) for x in attrs.dilation],
        groups=int(attrs.groups),
        data_layout=str(attrs.data_layout),
        kernel_layout=str(attrs.kernel_layout),
        out_layout=str(attrs.out_layout),
        out_dtype=_WIDE,
    )
