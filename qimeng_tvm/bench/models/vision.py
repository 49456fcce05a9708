"""Models of images: ResNet, MobileNetV2 and ViT as Hugging Face has them, VGG-16 and U-Net written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

#: Channels of VGG-16's convolutions; 0 halves the resolution.
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
CLASSES = 1000


class Logits(nn.Module):
    """A Hugging Face classifier as a function from pixels to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> Any:
        """Return the logits."""
        return self.model(pixel_values=pixels, return_dict=True).logits


class Vgg(nn.Module):
    """VGG without batch normalisation (configuration D of Simonyan and Zisserman)."""

    def __init__(self, channels: Sequence[int] = _VGG16, hidden: int = 4096, classes: int = CLASSES) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for count in channels:
            if count:
                layers += [nn.Conv2d(before, count, 3, padding=1), nn.ReLU()]
                before = count
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(before * 49, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )
        for module in self.modules():  # torch's own default would shrink what goes through sixteen layers to nothing
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, pixels: torch.Tensor) -> Any:
        """Return the logits."""
        return self.classifier(torch.flatten(self.pool(self.features(pixels)), 1))


class UNet(nn.Module):
    """U-Net (Ronneberger et al.), padded and with batch normalisation, up-sampling by transposed convolutions."""

    def __init__(self, width: int = 64, depth: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.widen = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_twice(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, pixels: torch.Tensor) -> Any:
        """Return the logits of every pixel."""
        x, kept = pixels, []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            kept.append(x)
        for widen, block, skip in zip(self.widen, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([skip, widen(x)], 1))
        return self.head(x)


def _twice(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for count in (before, after):
        layers += [nn.Conv2d(count, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def resnet(depths: Sequence[int], basic: bool, widths: Sequence[int] | None = None) -> nn.Module:
    """Return a ResNet (version 1.5: a bottleneck's 3x3 convolution has the stride)."""
    from transformers import ResNetConfig, ResNetForImageClassification  # noqa: PLC0415 (an extra, slow to import)

    wide = list(widths) if widths else ([64, 128, 256, 512] if basic else [256, 512, 1024, 2048])
    kind = "basic" if basic else "bottleneck"
    config = ResNetConfig(depths=list(depths), hidden_sizes=wide, layer_type=kind, num_labels=CLASSES)
    return Logits(ResNetForImageClassification(config))


def mobilenet_v2() -> nn.Module:
    """Return MobileNetV2, padded on both sides as everywhere but in TensorFlow."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification  # noqa: PLC0415 (as above)

    return Logits(MobileNetV2ForImageClassification(MobileNetV2Config(tf_padding=False, num_labels=CLASSES)))


def vit_b16(layers: int | None) -> nn.Module:
    """Return ViT-B/16, or its first layers."""
    from transformers import ViTConfig, ViTForImageClassification  # noqa: PLC0415 (as above)

    return Logits(ViTForImageClassification(ViTConfig(num_hidden_layers=layers or 12, num_labels=CLASSES)))


def pixels(batch: int, size: int = 224) -> tuple[torch.Tensor, ...]:
    """Return random images, with structure of every scale: noise alone looks the same everywhere to a deep layer."""
    image = torch.zeros(batch, 3, size, size)
    for cells in (3, 9, 27, 81, size):
        image += nn.functional.interpolate(torch.randn(batch, 3, cells, cells), (size, size), mode="bilinear")
    return (image / 5**0.5,)
