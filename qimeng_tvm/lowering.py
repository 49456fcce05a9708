"""From a scheduled module to machine code: TVM's pipeline, with register tiles kept on the stack and vector math."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.target import Target
from tvm_ffi import structural_map

from qimeng_tvm.schedule.vector_math import replace_math

#: Name under which the pipeline is registered with TVM (``tvm.tirx.build(..., pipeline=PIPELINE)``).
PIPELINE = "qimeng"
#: Annotation of an allocation that LowerTVMBuiltin leaves as it is: on the stack, where LLVM finds registers for it.
_KEEP = "disable_lower_builtin"
#: Bytes of the largest tile that can be meant for registers: 32 vectors of 2048 bits, and as much again.
_MOST = 16384


def _bytes(buffer: tirx.Buffer) -> int:
    """Size of a buffer; 0 when it is not constant."""
    size = int(buffer.dtype.itemsize)
    for extent in buffer.shape:
        if not isinstance(extent, tirx.IntImm):
            return 0
        size *= int(extent)
    return size


def _keep(stmt: tirx.AllocBuffer) -> tirx.AllocBuffer:
    if stmt.buffer.scope() != "local" or not 0 < _bytes(stmt.buffer) <= _MOST:
        return stmt
    return tirx.AllocBuffer(stmt.buffer, {**dict(stmt.annotations), _KEEP: tirx.const(True, "bool")})


@tirx.transform.prim_func_pass(opt_level=0, name="qimeng.KeepRegisterTiles")
def keep_register_tiles(func: Any, _module: Any, _context: Any) -> Any:
    """Mark small ``local`` buffers to stay on the stack.

    TVM moves those over 1024 bytes (it counts a vector's lanes twice: over 4 vectors of 8 floats) to a workspace from
    a library call. LLVM cannot take memory from a call apart: each tile then lives on after its loops, is stored at
    the end, and where several compete (whole panels and the last one) all of them spill in the innermost loop.
    """
    return func.with_body(structural_map(func.body, (tirx.AllocBuffer, _keep)))


@tirx.transform.prim_func_pass(opt_level=0, name="qimeng.ReplaceMath")
def vector_math(func: Any, _module: Any, _context: Any) -> Any:
    """Compute exponentials and the like in vectors; see :func:`~qimeng_tvm.schedule.vector_math.replace_math`."""
    return replace_math(func)


def _pipeline() -> tuple[Any, Any, Any]:
    base, host, device = tirx.get_tir_pipeline("default")
    return tvm.transform.Sequential([base, keep_register_tiles, vector_math]), host, device


tirx.register_tir_pipeline(PIPELINE, _pipeline)


def build(module: tvm.IRModule, target: Target) -> Any:
    """Compile a scheduled module; errors are TVM's own."""
    return tirx.build(module, target=target, pipeline=PIPELINE)
