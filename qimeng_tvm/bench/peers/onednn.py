"""oneDNN through PyTorch: prepacked weights where B is constant, its matmul where not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qimeng_tvm.bench.data import Inputs
from qimeng_tvm.bench.peers import torchlib
from qimeng_tvm.bench.systems import Offer, Peer, Refusal, Variant
from qimeng_tvm.request import Request

_ALLOCATES = "allocates its output"


@dataclass(frozen=True)
class OneDnn(Peer):
    """f32, bf16 and u8s8 by the operators that PyTorch's compiler lowers a frozen linear layer to."""

    name: str = "onednn"

    def available(self) -> str | None:
        """See :class:`Peer`."""
        missing = torchlib.torch_missing()
        if missing:
            return missing
        import torch  # noqa: PLC0415

        return None if bool(torch._C._has_mkldnn) else "this build of torch has no oneDNN"

    def prepare(self, request: Request, inputs: Inputs, threads: int) -> Offer:
        """See :class:`Peer`."""
        import torch  # noqa: PLC0415

        torchlib.use_threads(threads)
        if request.a_dtype == "uint8":
            return _int8(torch, request, inputs)
        if request.a_dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return Refusal("oneDNN has no bf16 for this CPU")
        if request.a_dtype not in {"float32", "bfloat16"}:
            return Refusal(f"no operator for {request.a_dtype}")
        return _floating(torch, request, inputs)


def _floating(torch: Any, request: Request, inputs: Inputs) -> Offer:
    a, b = torchlib.tensor(inputs.a), torchlib.tensor(inputs.b)
    bf16 = request.a_dtype == "bfloat16"
    note = _ALLOCATES + ("; answers in bfloat16" if bf16 else "")
    linear = torch.ops.mkldnn._linear_pointwise
    offer: list[Variant] = []
    if a.dim() == 3:
        offer.append(_loop(note, a, b, lambda x, y: linear(x, y, None, "none", [], "")))
        if bf16:  # f32 would go to MKL, which is a peer of its own
            out = torch.empty((*a.shape[:-1], request.n), dtype=torch.bfloat16)
            offer.append(
                Variant(lambda: torch.bmm(a, b, out=out), torchlib.fetch, label="bmm", note="answers in bfloat16")
            )
        return offer
    columns = b.t()
    offer.append(Variant(lambda: linear(a, columns, None, "none", [], ""), torchlib.fetch, label="plain B", note=note))
    if bf16:
        out = torch.empty((request.m, request.n), dtype=torch.bfloat16)
        offer.append(Variant(lambda: torch.mm(a, b, out=out), torchlib.fetch, label="mm", note="answers in bfloat16"))
    if request.constant_b:
        weight = b.t().contiguous()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, request.m)
        offer.append(
            Variant(lambda: linear(a, packed, None, "none", [], ""), torchlib.fetch, label="prepacked B", note=note)
        )
    return offer


def _loop(note: str, a: Any, b: Any, product: Callable[[Any, Any], Any]) -> Variant:
    """A batch by one product after the other, each with B transposed as a view."""
    import torch  # noqa: PLC0415

    pairs = [(a[i], b[i].t()) for i in range(a.shape[0])]

    def call() -> list[Any]:
        return [product(x, y) for x, y in pairs]

    return Variant(call, lambda parts: torchlib.fetch(torch.stack(parts)), label="one product at a time", note=note)


def _int8(torch: Any, request: Request, inputs: Inputs) -> Offer:
    a, b = torchlib.tensor(inputs.a), torchlib.tensor(inputs.b)
    prepack, pointwise = torch.ops.onednn.qlinear_prepack, torch.ops.onednn.qlinear_pointwise
    scales, zeros = torch.ones(request.n), torch.zeros(request.n, dtype=torch.int32)
    shape = [request.m, request.k]

    def product(x: Any, packed: Any) -> Any:
        return pointwise(x, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")

    note = _ALLOCATES + "; answers in float32"
    if a.dim() == 3:
        return _loop(note, a, b, lambda x, y: product(x, prepack(y, shape)))
    columns = b.t().contiguous() if request.constant_b else b.t()
    packed = prepack(columns, shape)
    offer: list[Variant] = []
    if request.constant_b:
        offer.append(Variant(lambda: product(a, packed), torchlib.fetch, label="qlinear, prepacked B", note=note))
        offer += _fbgemm(torch, request, a, columns)
    else:
        offer.append(
            Variant(
                lambda: product(a, prepack(columns, shape)), torchlib.fetch, label="qlinear, B packed in", note=note
            )
        )
    if torch.cpu._is_vnni_supported():  # without it torch._int_mm is three nested loops
        offer += _int_mm(torch, request, a, b)
    return offer


def _int_mm(torch: Any, request: Request, a: Any, b: Any) -> list[Variant]:
    """``torch._int_mm``: u8 operands as they are, and s8 ones with the shift by 128 made good afterwards."""
    out = torch.empty((request.m, request.n), dtype=torch.int32)
    shifted = (a.int() - 128).to(torch.int8)
    correction = 128 * b.int().sum(0, keepdim=True).to(torch.int32)
    other = torch.empty_like(out)  # no variant may be saved by another's answer

    def corrected() -> Any:
        torch._int_mm(shifted, b, out=other)
        return other.add_(correction)

    return [
        Variant(lambda: torch._int_mm(a, b, out=out), torchlib.fetch, label="_int_mm u8s8"),
        Variant(
            corrected, torchlib.fetch, label="_int_mm s8s8", note="A shifted to s8 and column sums made beforehand"
        ),
    ]


def _fbgemm(torch: Any, request: Request, a: Any, columns: Any) -> list[Variant]:
    """FBGEMM's quantized linear layer, which answers in one byte an element."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return []
    # 256 steps over mean and six deviations of a sum of K products of uniform bytes: coarser ones hide saturation.
    scale = (64.0 * request.k + 6.0 * 147.0 * 74.0 * request.k**0.5) / 128.0
    torch.backends.quantized.engine = "fbgemm"
    x = torch._make_per_tensor_quantized_tensor(a, 1.0, 0)
    weight = torch._make_per_tensor_quantized_tensor(columns, 1.0, 0)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    linear = torch.ops.quantized.linear
    return [
        Variant(
            lambda: linear(x, packed, scale, 128),
            lambda result: torchlib.fetch(result.dequantize()),
            label="fbgemm",
            note="answers in quantized 8 bit",
            quantum=scale,
        )
    ]
