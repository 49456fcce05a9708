"""Models with sizes that are not fixed: a function for each of some sizes, one for all, and ``main``, which chooses.

The functions for known sizes have known shapes throughout, so that rules and records serve them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import reduce

import tvm
from tvm import relax, tirx

from qimeng_tvm.errors import UsageError
from qimeng_tvm.relax.signature import MAIN, inputs_of, main_of

#: Sizes by the name of the dimension.
Buckets = Mapping[str, Sequence[int]]

#: Functions of known shapes that a model becomes by itself: each is compiled, and has weights packed its own way.
_MOST = 4
#: Attributes of ``main``, by the front ends: limits of its dimensions.
_LOWER, _UPPER = "tir_var_lower_bound", "tir_var_upper_bound"
#: Of the function for all sizes.
_GENERAL = f"{MAIN}_general"


def bucket_sizes(module: tvm.IRModule, buckets: Buckets | None = None) -> tuple[Mapping[str, int], ...]:
    """Return the sizes of its dimensions that a model gets functions of its own for; nothing if all are fixed.

    Parameters
    ----------
    module : tvm.IRModule
        The model; its symbolic dimensions are known by their names.
    buckets : mapping, optional
        Values of each dimension; all combinations are taken. By default at most 4 values, the limits that the front
        end tells and powers of two, of a model with one such dimension, and none of a model with several.

    Raises
    ------
    UsageError
        If they do not name the model's dimensions, or are no sizes.
    """
    names = [str(v.name) for v in _dimensions(module)]
    if buckets is None:
        return tuple({names[0]: n} for n in _default(module, names[0])) if len(names) == 1 else ()
    if not buckets:
        return ()
    if set(buckets) != set(names):
        told = ", ".join(names) or "none"
        raise UsageError(f"buckets for {', '.join(sorted(buckets))}, and the model's flexible dimensions are: {told}")
    values = [sorted({int(n) for n in buckets[name]}) for name in names]
    if any(n < 1 for own in values for n in own):
        raise UsageError("a bucket is a size of 1 or more")
    return tuple(dict(zip(names, sizes, strict=True)) for sizes in itertools.product(*values))


def specialize(module: tvm.IRModule, sizes: Sequence[Mapping[str, int]]) -> tvm.IRModule:
    """Give a model a function for each of the sizes, one for all others, and a ``main`` that calls the one that fits.

    A model whose weights are parameters stays as it is: they could be packed in one way only.

    Parameters
    ----------
    module : tvm.IRModule
        The model.
    sizes : sequence of mapping
        As :func:`bucket_sizes` gives them.
    """
    main = main_of(module)
    if not sizes or inputs_of(module) < len(main.params):
        return module
    builder = relax.BlockBuilder(tvm.IRModule({gv: f for gv, f in module.functions.items() if gv.name_hint != MAIN}))
    special = [builder.add_func(_bound(main, own), bucket_name(own)) for own in sizes]
    general = builder.add_func(_private(relax.utils.copy_with_new_vars(main)), _GENERAL)
    builder.add_func(_dispatcher(builder, main, dict(zip(special, sizes, strict=True)), general), MAIN)
    return builder.get().with_attrs(dict(module.attrs or {}))


def bucket_name(sizes: Mapping[str, int]) -> str:
    """Return the name of the function for these sizes, such as ``main_n8``."""
    return "_".join([MAIN, *(f"{name}{n}" for name, n in sizes.items())])


def _dimensions(module: tvm.IRModule) -> list[tirx.Var]:
    return list(relax.analysis.defined_symbolic_vars(main_of(module)))


def _default(module: tvm.IRModule, name: str) -> list[int]:
    """Return at most so many sizes: the limits and the powers of two between, the largest where there are too many."""
    attrs = main_of(module).attrs or {}
    low, high = max(1, int(attrs.get(_LOWER, {}).get(name, 1))), attrs.get(_UPPER, {}).get(name)
    first = (low - 1).bit_length()
    if high is None:
        return [1 << n for n in range(first, first + _MOST)]
    high = int(high)
    if high - low < _MOST:
        return list(range(low, high + 1))
    between = [1 << n for n in range(first, math.ceil(math.log2(high))) if low < 1 << n < high]
    return [low, *between[-(_MOST - 2) :], high]


def _bound(main: relax.Function, sizes: Mapping[str, int]) -> relax.Function:
    return _private(relax.utils.copy_with_new_vars(main.bind_symbolic_vars(dict(sizes))))


def _private(function: relax.Function) -> relax.Function:
    return function.without_attr("global_symbol").without_attr("num_input")


def _dispatcher(
    builder: relax.BlockBuilder,
    main: relax.Function,
    special: Mapping[tvm.ir.GlobalVar, Mapping[str, int]],
    general: tvm.ir.GlobalVar,
) -> relax.Function:
    """Return a function with the parameters and the result of the model, which hands them on."""
    shell = relax.utils.copy_with_new_vars(relax.Function(main.params, main.params[0], main.ret_ty, main.is_pure))
    known = {str(v.name): v for v in relax.analysis.defined_symbolic_vars(shell)}
    chosen = _call(general, None, shell)
    for callee, sizes in reversed(list(special.items())):
        fits = reduce(tirx.And, [tirx.EQ(known[name], tirx.const(n, "int64")) for name, n in sizes.items()])
        chosen = relax.If(fits, _call(callee, sizes, shell), chosen)
        result = relax.Var("chosen", shell.ret_ty)
        chosen = relax.SeqExpr([relax.BindingBlock([relax.VarBinding(result, chosen)])], result)
    attrs = {name: value for name, value in (main.attrs or {}).items() if name != "num_input"}
    made = relax.Function(shell.params, chosen, shell.ret_ty, shell.is_pure).with_attrs(attrs)
    return builder.normalize(made)


def _call(callee: tvm.ir.GlobalVar, sizes: Mapping[str, int] | None, shell: relax.Function) -> relax.SeqExpr:
    """Return a call with the model's parameters, their types as the callee has them, and its result as the model's."""
    bindings, arguments = [], list(shell.params)
    if sizes is not None:
        fixed = shell.bind_symbolic_vars(dict(sizes))
        arguments = [relax.Var(str(p.name), p.ty) for p in fixed.params]
        bindings = [relax.MatchCast(a, p, a.ty) for a, p in zip(arguments, shell.params, strict=True)]
    found, result = relax.Var("found", None), relax.Var("result", shell.ret_ty)
    bindings += [relax.VarBinding(found, relax.Call(callee, arguments)), relax.MatchCast(result, found, shell.ret_ty)]
    return relax.SeqExpr([relax.BindingBlock(bindings)], result)
