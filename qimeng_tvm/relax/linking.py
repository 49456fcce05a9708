"""Machine code of a lowered module's functions, linked as a library of its own.

``relax.build`` compiles what a module has with TVM's pipeline and the caller's target. Ours keeps register tiles on the
stack (:mod:`qimeng_tvm.lowering`), and the target has to name all of the instructions that schedules were made for.
"""

from __future__ import annotations

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.script import tirx as T
from tvm.target import Target

from qimeng_tvm.errors import BuildError
from qimeng_tvm.lowering import build

#: What stays for ``relax.build`` to compile: it does nothing. Where there is no function at all, TVM makes an empty C
#: source in place of its library, and then has to write a model to disk with all its weights before it can run it.
_NOTHING = "qimeng_nothing"
#: Module attribute: libraries that ``relax.build`` links.
_LIBRARIES = "external_mods"


def link_functions(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Compile the PrimFuncs of a module whose calls are lowered, and call them in the library that they become.

    Parameters
    ----------
    module : tvm.IRModule
        As TVM's default pipeline leaves it: Relax functions call PrimFuncs by name, with their outputs.
    target : tvm.target.Target
        What the code is for.

    Raises
    ------
    BuildError
        If TVM or LLVM refuses a function.
    """
    functions = {gv: f for gv, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}
    if not functions:
        return module
    try:
        library = build(tvm.IRModule(functions), target)
    except (RuntimeError, ValueError, TypeError) as error:
        raise BuildError(f"TVM could not build the model's functions: {str(error).splitlines()[-1]}") from error
    linked = _CallsOutside(module).transform()
    linked[_NOTHING] = _nothing()
    before = list((module.attrs or {}).get(_LIBRARIES, []))
    return linked.with_attr(_LIBRARIES, [*before, library])


def _nothing() -> tirx.PrimFunc:
    @T.prim_func(s_tir=True)
    def nothing() -> None:
        T.func_attr({"global_symbol": _NOTHING})
        T.evaluate(0)

    return nothing


@mutator
class _CallsOutside(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.module = module

    def transform(self) -> tvm.IRModule:
        attrs = self.module.attrs
        relaxed = {gv: self.visit_expr(f) for gv, f in self.module.functions.items() if isinstance(f, relax.Function)}
        return tvm.IRModule(relaxed, attrs=attrs)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        callee = call.op
        if isinstance(callee, tvm.ir.GlobalVar) and isinstance(self.module[callee], tirx.PrimFunc):
            return relax.Call(relax.ExternFunc(callee.name_hint), call.args, call.attrs, call.ty_args)
        return call
