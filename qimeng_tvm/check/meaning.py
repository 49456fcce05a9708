"""What an intrinsic says it computes and takes, against what its family's declaration means; nothing runs."""

from __future__ import annotations

from typing import Any

from qimeng_tvm.intrin.lanewise import LaneShape, lane_desc
from qimeng_tvm.intrin.microkernel import GemmShape, gemm_desc


def trusted_desc(shape: GemmShape | LaneShape) -> Any:
    """Return what a shape means, as plain loops."""
    return lane_desc(shape) if isinstance(shape, LaneShape) else gemm_desc(shape)


def desc_problem(desc: Any, shape: GemmShape | LaneShape) -> str:
    """Say where a desc differs from the trusted one; empty when it does not."""
    import tvm_ffi  # noqa: PLC0415

    found = tvm_ffi.get_first_structural_mismatch(desc, trusted_desc(shape), map_free_vars=True)
    if found is None:
        return ""
    s = shape
    if isinstance(s, LaneShape):
        lane = f"C[{s.mr}, {s.nr}] ({s.acc_dtype}) += A[i * {s.step}, c] ({s.a_dtype}) * B[c] ({s.b_dtype})"
        return f"is not {lane}: they differ at {found[0]}; return lane_desc(shape) of that shape"
    product = f"A[{s.mr}, {s.kc}] ({s.a_dtype}) @ B[{s.kc}, {s.nr}] ({s.b_dtype})"
    return (
        f"is not C[{s.mr}, {s.nr}] ({s.acc_dtype}) += {product}: they differ at {found[0]}; "
        "return gemm_desc(shape) of that shape"
    )


def operand_problem(desc: Any, impl: Any) -> str:
    """Say which operand of an impl has another shape, type or scope than the desc's; empty when none has.

    TVM puts such an impl in place without a word, and beyond a tile of registers no memory ends.
    """
    pairs = list(zip(desc.params, impl.params, strict=False))
    if len(pairs) != len(desc.params) or len(impl.params) != len(desc.params):
        return f"{len(impl.params)} operands instead of {len(desc.params)}"
    for name, (left, right) in zip("ABC", pairs, strict=False):
        wanted, got = _operand(left), _operand(right)
        if wanted != got:
            return f"{name} is {got} instead of {wanted}"
    return ""


def _operand(buffer: Any) -> str:
    return f"{buffer.dtype}[{', '.join(str(x) for x in buffer.shape)}] in {buffer.scope()} memory"
