"""Convolutions by oneDNN, through PyTorch: plain layouts, and operands blocked as the library likes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qimeng_tvm.bench.conv_data import ConvInputs, load_inputs, load_reference
from qimeng_tvm.bench.conv_suite import ConvCase
from qimeng_tvm.bench.data import Reference
from qimeng_tvm.bench.peers import torchlib
from qimeng_tvm.bench.systems import Offer, Peer, Variant, named


@dataclass(frozen=True)
class ConvPeer(Peer):
    """Base of the systems that convolve."""

    def inputs(self, folder: Path) -> ConvInputs:
        """Read what a case's folder holds."""
        return load_inputs(folder)

    def reference(self, folder: Path) -> Reference:
        """Read what is right."""
        return load_reference(folder)

    def prepare(self, request: ConvCase, inputs: ConvInputs, threads: int) -> Offer:
        """See :class:`Peer`."""
        raise NotImplementedError


@dataclass(frozen=True)
class _OneDnn(ConvPeer):
    def available(self) -> str | None:
        """See :class:`Peer`."""
        missing = torchlib.torch_missing()
        if missing:
            return missing
        import torch  # noqa: PLC0415 (an extra)

        return None if bool(torch._C._has_mkldnn) else "this build of torch has no oneDNN"


@dataclass(frozen=True)
class OneDnnPlain(_OneDnn):
    """``conv2d`` as everybody calls it, channels outermost or innermost; it reorders operands inside."""

    name: str = "onednn_plain"

    def prepare(self, request: ConvCase, inputs: ConvInputs, threads: int) -> Offer:
        """See :class:`Peer`."""
        import torch  # noqa: PLC0415 (an extra)

        torchlib.use_threads(threads)
        how = (None, request.stride, request.pad, 1, request.groups)
        x, w = torchlib.tensor(inputs.x), torchlib.tensor(inputs.w)
        last_x, last_w = (t.to(memory_format=torch.channels_last) for t in (x, w))
        return [
            Variant(lambda: torch.conv2d(x, w, *how), torchlib.fetch, label="contiguous"),
            Variant(lambda: torch.conv2d(last_x, last_w, *how), torchlib.fetch, label="channels last"),
        ]


@dataclass(frozen=True)
class OneDnnBlocked(_OneDnn):
    """Filters packed beforehand; pixels plain, channels innermost, or blocked too, as between layers of a network."""

    name: str = "onednn_blocked"

    def prepare(self, request: ConvCase, inputs: ConvInputs, threads: int) -> Offer:
        """See :class:`Peer`."""
        import torch  # noqa: PLC0415 (as above)

        torchlib.use_threads(threads)
        x, w = torchlib.tensor(inputs.x), torchlib.tensor(inputs.w)
        pad, stride, dilation, groups = [request.pad] * 2, [request.stride] * 2, [1, 1], request.groups
        size = list(x.shape)
        pack, pointwise = torch.ops.mkldnn._reorder_convolution_weight, torch.ops.mkldnn._convolution_pointwise

        def frozen(label: str, pixels: Any, filters: Any) -> Variant:
            packed = pack(filters, pad, stride, dilation, groups, size)
            return Variant(
                lambda: pointwise(pixels, packed, None, pad, stride, dilation, groups, "none", [], ""),
                torchlib.fetch,
                label=label,
            )

        last_x, last_w = (t.to(memory_format=torch.channels_last) for t in (x, w))
        blocked_x = x.to_mkldnn()
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        blocked_w = reorder(w.to_mkldnn(), pad, stride, dilation, groups, size)
        return [
            frozen("plain pixels", x, w),
            frozen("channels last", last_x, last_w),
            Variant(
                lambda: torch.conv2d(blocked_x, blocked_w, None, stride, pad, dilation, groups),
                lambda result: torchlib.fetch(result.to_dense()),
                label="blocked pixels",
                note="pixels and result stay in the library's own layout",
            ),
        ]


def conv_peers(names: Iterable[str] | None = None) -> tuple[ConvPeer, ...]:
    """Return the peers, or those named.

    Raises
    ------
    UsageError
        If there is none of a name.
    """
    peers: tuple[ConvPeer, ...] = (OneDnnPlain(), OneDnnBlocked())
    return peers if names is None else named(peers, names)
