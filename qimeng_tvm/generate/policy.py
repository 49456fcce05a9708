"""What a family from a model may import, reach and call: see :mod:`qimeng_tvm.check.source`."""

from __future__ import annotations

from qimeng_tvm.check.source import Policy
from qimeng_tvm.generate.tasks import IntrinsicTask
from qimeng_tvm.intrin.contract import LANEWISE

_EXPRESSIONS = (
    "Broadcast Ramp Cast Select Buffer PrimFunc BufferLoad const reinterpret shift_left shift_right bitwise_and "
    "bitwise_or bitwise_xor bitwise_not call_llvm_pure_intrin call_llvm_intrin call_extern floordiv floormod "
    "truncdiv truncmod min max any all"
)
_SCRIPT = (
    "prim_func handle int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 bool match_buffer "
    "decl_buffer alloc_buffer sblock reads writes axis grid unroll serial vectorized evaluate attr ramp broadcast "
    "reinterpret cast call_llvm_pure_intrin call_llvm_intrin call_extern shift_left shift_right bitwise_and "
    "bitwise_or bitwise_xor bitwise_not max min floordiv floormod vscale if_then_else Select Buffer PrimFunc Ramp "
    "Broadcast Cast const"
)
_CONTRACT = "GemmShape gemm_desc intrin_family lines_ahead load prefetch_ahead whole"
_SHAPE = "mr nr kc a_shape b_shape a_strides b_strides a_index b_index c_scope a_panel c_local k_pack a_store b_store"
_LANE_CONTRACT = "LaneShape lane_desc intrin_family whole"
_LANE_SHAPE = "mr nr step a_shape in_scope in_local a_store b_store"
_AXIS = "spatial reduce remap"


def family_policy(task: IntrinsicTask) -> Policy:
    """Return what a family for a task may say: its primitives, and nothing that others need."""
    contract, shape = (_LANE_CONTRACT, _LANE_SHAPE) if task.kind == LANEWISE else (_CONTRACT, _SHAPE)
    return Policy(
        modules={
            "__future__": frozenset({"annotations"}),
            "typing": frozenset({"Any"}),
            "tvm": frozenset({"tirx"}),
            "tvm.script": frozenset({"tirx"}),
            "qimeng_tvm.intrin": frozenset(contract.split()),
        },
        reach={
            "tirx": frozenset(_EXPRESSIONS.split()),
            "T": frozenset(_SCRIPT.split()),
        },
        attributes=frozenset(f"{shape} {_AXIS}".split()),
        llvm=frozenset(p.llvm for p in task.primitives),
        asm=frozenset(task.asm_mnemonics if task.inline_asm else ()),
    )
