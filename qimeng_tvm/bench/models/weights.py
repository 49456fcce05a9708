"""Random weights as a trained model might have them: nothing that folds away, overflows or becomes denormal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qimeng_tvm.errors import ModelError

#: Smallest normal number of float32, and of bfloat16: below it some systems flush to zero, and others are slow.
_NORMAL = 2.0**-126
_LARGE = 1e4
_NORMS = (nn.BatchNorm2d, nn.LayerNorm)
_FILTERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def enliven(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Give a freshly made model scales, biases and statistics other than the ones and zeros they begin with.

    The statistics of batch normalisation are what typical inputs lead to, so that no layer's output grows.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(
                    0.1 * torch.randn_like(parameter) if "weight" in name else 0.02 * torch.randn_like(parameter)
                )
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        if norms:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # an average over all that is seen
                norm.train()
            module(*inputs)
    module.eval()
    module.requires_grad_(False)


@dataclass
class Shape:
    """What the error of a model's result depends on.

    Attributes
    ----------
    depth : int
        Layers with weights.
    terms : int
        Of the longest sum in any of them.
    """

    depth: int
    terms: int


def shape_of(module: nn.Module) -> Shape:
    """Return depth and longest sum of a model."""
    layers = [m for m in module.modules() if isinstance(m, _FILTERS)]
    terms = [m.weight[0].numel() if not isinstance(m, nn.ConvTranspose2d) else m.weight.shape[0] for m in layers]
    return Shape(len(layers), max(terms, default=1))


@contextmanager
def checking(module: nn.Module) -> Iterator[None]:
    """Look at the result of every layer while a model runs.

    Raises
    ------
    ModelError
        If one is not finite, is large, or has denormal numbers.
    """

    def look(name: str, result: Any) -> None:
        if not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return
        size = result.abs()
        if not bool((size <= _LARGE).all()):
            raise ModelError(f"{name} gives values up to {float(size.max()):g}: the random weights are no good")
        if bool(((size > 0) & (size < _NORMAL)).any()):
            raise ModelError(f"{name} gives denormal numbers: the random weights are no good")

    def hook(name: str) -> Any:
        return lambda _module, _args, result: look(name, result)

    hooks = [
        m.register_forward_hook(hook(name)) for name, m in module.named_modules() if isinstance(m, _NORMS + _FILTERS)
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
