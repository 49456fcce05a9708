"""Take a scheduled function apart: what packs a constant operand once, and what runs every time."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import IRModule, relax, tirx

from qimeng_tvm.schedule.analysis import LAYOUT_FREE

MAIN = "main"
PACK = "pack_b"


@dataclass(frozen=True)
class Operator:
    """A scheduled operator, ready to build.

    Attributes
    ----------
    module : tvm.IRModule
        Function ``main`` and, when an operand is packed beforehand, ``pack_b``.
    packs : bool
        ``main`` takes the constant operand as ``pack_b(B, packed)`` left it.
    """

    module: IRModule
    packs: bool

    @property
    def main(self) -> tirx.PrimFunc:
        """The function that runs every time."""
        return self.module[MAIN]

    @property
    def pack(self) -> tirx.PrimFunc | None:
        """The function that packs the constant operand, if any."""
        return self.module[PACK] if self.packs else None


def tensor_type(buffer: tirx.Buffer) -> relax.TensorType:
    """Relax type of a buffer parameter."""
    return relax.TensorType([int(x) for x in buffer.shape], str(buffer.dtype))


def split_prepack(func: tirx.PrimFunc) -> Operator:
    """Split a scheduled function at its compile-time packing, by the pass that models go through."""
    func = func.with_attr("global_symbol", MAIN)
    attrs = func.attrs or {}
    if LAYOUT_FREE not in attrs:
        return Operator(IRModule({MAIN: func}), packs=False)
    *inputs, output = func.params
    builder = relax.BlockBuilder()
    gvar = builder.add_func(func.with_attr("global_symbol", "op").with_attr("op_pattern", 4), "op")
    args = [relax.Var(f"x{i}", tensor_type(p)) for i, p in enumerate(inputs)]
    with builder.function("entry", args):
        with builder.dataflow():
            call = builder.emit(relax.call_tir(gvar, relax.Tuple(args), tensor_type(output)))
            result = builder.emit_output(call)
        builder.emit_func_output(result)
    module = relax.transform.SplitLayoutRewritePreproc()(builder.finalize())
    found = {gv.name_hint: f for gv, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}
    pack = next((f for name, f in found.items() if name.endswith("weight_prepack")), None)
    if pack is None:
        return Operator(IRModule({MAIN: func}), packs=False)
    main = next(f for name, f in found.items() if name.endswith("_prepacked"))
    return Operator(
        IRModule({MAIN: main.with_attr("global_symbol", MAIN), PACK: pack.with_attr("global_symbol", PACK)}),
        packs=True,
    )
