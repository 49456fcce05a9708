"""Intel MKL through PyTorch's ``mm`` and ``bmm``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qimeng_tvm.bench.data import Inputs
from qimeng_tvm.bench.peers import torchlib
from qimeng_tvm.bench.systems import Offer, Peer, Refusal, Variant
from qimeng_tvm.request import Request


@dataclass(frozen=True)
class Mkl(Peer):
    """f32 as it is; bf16 widened to f32 inside the timed region, what one does without bf16 instructions."""

    name: str = "mkl"

    def available(self) -> str | None:
        """See :class:`Peer`."""
        missing = torchlib.torch_missing()
        if missing:
            return missing
        import torch  # noqa: PLC0415

        return None if bool(torch._C.has_mkl) else "this build of torch has no MKL"

    def prepare(self, request: Request, inputs: Inputs, threads: int) -> Offer:
        """See :class:`Peer`."""
        import torch  # noqa: PLC0415

        if request.a_dtype not in {"float32", "bfloat16"}:
            return Refusal("torch has no integer product through MKL")
        torchlib.use_threads(threads)
        a, b = torchlib.tensor(inputs.a), torchlib.tensor(inputs.b)
        out = torch.empty((*a.shape[:-1], request.n), dtype=torch.float32)
        product = torch.bmm if a.dim() == 3 else torch.mm
        if request.a_dtype == "bfloat16":
            return Variant(
                _widened(product, a, b, out, constant_b=request.constant_b),
                torchlib.fetch,
                label="widened to f32",
                note="operands widened to float32 in the timed region" + (", B beforehand" * request.constant_b),
            )
        offer = [Variant(lambda: product(a, b, out=out), torchlib.fetch, label="row-major B")]
        if request.constant_b and a.dim() == 2:
            weight = b.t().contiguous()
            columns = weight.t()
            other = torch.empty_like(out)  # no variant may be saved by another's answer
            offer.append(Variant(lambda: product(a, columns, out=other), torchlib.fetch, label="column-major B"))
            offer += _packed(torch, a, weight, request.m)
        return offer


def _widened(product: Any, a: Any, b: Any, out: Any, *, constant_b: bool) -> Any:
    import torch  # noqa: PLC0415

    wide_a, wide_b = torch.empty(a.shape, dtype=torch.float32), b.float()

    def call() -> Any:
        wide_a.copy_(a)
        if not constant_b:
            wide_b.copy_(b)
        return product(wide_a, wide_b, out=out)

    return call


def _packed(torch: Any, a: Any, weight: Any, rows: int) -> list[Variant]:
    """MKL's own packed product, where this build of torch exposes it."""
    try:
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    except (RuntimeError, NotImplementedError, AttributeError):
        return []
    call = torch.ops.mkl._mkl_linear
    return [
        Variant(
            lambda: call(a, packed, weight, None, rows),
            torchlib.fetch,
            label="packed B",
            note="allocates its output",
        )
    ]
