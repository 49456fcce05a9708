"""The models of the benchmark by name.

Importing this imports nothing heavy; a model's own file is imported when it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qimeng_tvm.errors import UsageError

#: By data type, goes into the names of what is kept: to be raised when a model here, or what is kept of it, becomes
#: another.
EDITION: Mapping[str, int] = MappingProxyType({"f32": 1, "bf16": 2, "int8": 1})
#: Tokens that a Llama's cache has room for, and how many of them are there when one more is decoded.
_CACHE, _HELD = 128, 100


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes
    ----------
    build : callable
        Of the number of layers, None for all; returns a torch module.
    inputs : callable
        Of that module and a batch; returns random example inputs.
    layers : int or None
        How many there are by default where they can be fewer.
    images : bool
        It is made of convolutions.
    """

    build: Callable[[int | None], Any]
    inputs: Callable[[Any, int], tuple[Any, ...]]
    layers: int | None = None
    images: bool = False


def _resnet18(_: int | None) -> Any:
    from qimeng_tvm.bench.models.vision import resnet  # noqa: PLC0415 (torch, transformers: extras)

    return resnet((2, 2, 2, 2), basic=True)


def _resnet50(_: int | None) -> Any:
    from qimeng_tvm.bench.models.vision import resnet  # noqa: PLC0415 (as above)

    return resnet((3, 4, 6, 3), basic=False)


def _vgg16(_: int | None) -> Any:
    from qimeng_tvm.bench.models.vision import Vgg  # noqa: PLC0415 (as above)

    return Vgg()


def _mobilenet_v2(_: int | None) -> Any:
    from qimeng_tvm.bench.models.vision import mobilenet_v2  # noqa: PLC0415 (as above)

    return mobilenet_v2()


def _unet(_: int | None) -> Any:
    from qimeng_tvm.bench.models.vision import UNet  # noqa: PLC0415 (as above)

    return UNet()


def _vit(layers: int | None) -> Any:
    from qimeng_tvm.bench.models.vision import vit_b16  # noqa: PLC0415 (as above)

    return vit_b16(layers)


def _bert(layers: int | None) -> Any:
    from qimeng_tvm.bench.models.language import Encoder  # noqa: PLC0415 (as above)

    return Encoder(layers)


def _llama(layers: int | None) -> Any:
    from qimeng_tvm.bench.models.language import Decoder  # noqa: PLC0415 (as above)

    return Decoder(layers)


def _images(size: int) -> Callable[[Any, int], tuple[Any, ...]]:
    def make(_: Any, batch: int) -> tuple[Any, ...]:
        from qimeng_tvm.bench.models.vision import pixels  # noqa: PLC0415 (as above)

        return pixels(batch, size)

    return make


def _tokens(length: int) -> Callable[[Any, int], tuple[Any, ...]]:
    def make(module: Any, batch: int) -> tuple[Any, ...]:
        from qimeng_tvm.bench.models.language import tokens  # noqa: PLC0415 (as above)

        return tokens(batch, length, module.model.config.vocab_size)

    return make


def _one_more(module: Any, batch: int) -> tuple[Any, ...]:
    from qimeng_tvm.bench.models.language import decode_inputs  # noqa: PLC0415 (as above)

    return decode_inputs(module, batch, _HELD, _CACHE)


#: By name. A Llama has two of its sixteen layers unless told: every system holds the weights at the same time.
MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "resnet18": Model(_resnet18, _images(224), images=True),
        "resnet50": Model(_resnet50, _images(224), images=True),
        "vgg16": Model(_vgg16, _images(224), images=True),
        "mobilenet_v2": Model(_mobilenet_v2, _images(224), images=True),
        "unet": Model(_unet, _images(256), images=True),
        "bert-128": Model(_bert, _tokens(128), layers=12),
        "bert-384": Model(_bert, _tokens(384), layers=12),
        "vit-b16": Model(_vit, _images(224), layers=12),
        "llama-prefill": Model(_llama, _tokens(128), layers=2),
        "llama-decode": Model(_llama, _one_more, layers=2),
    }
)


def model_named(name: str) -> Model:
    """Return a model of :data:`MODELS`.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    if name not in MODELS:
        raise UsageError(f"there is no model {name!r}; choose from {', '.join(MODELS)}")
    return MODELS[name]
