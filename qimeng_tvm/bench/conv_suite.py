"""The convolutions that the benchmark times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qimeng_tvm.errors import UsageError

#: Short name -> TVM's dtype of pixels and filters.
DTYPES = {"f32": "float32"}


@dataclass(frozen=True)
class ConvCase:
    """One convolution.

    Attributes
    ----------
    n, c, h, w : int
        Images, channels, rows and columns of the input.
    k, r, s : int
        Filters, and their rows and columns.
    stride, pad : int
        In both directions.
    groups : int
        1, or ``c`` for a depthwise one.
    dtype : str
        Key of :data:`DTYPES`.
    threads : int
        Of the systems that time it.
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: int = 1
    pad: int = 0
    groups: int = 1
    dtype: str = "f32"
    threads: int = 1

    @property
    def name(self) -> str:
        """Name in tables and JSON: input, filters, stride and padding."""
        kind = "-dw" if self.groups > 1 else ""
        return f"{self.n}x{self.c}x{self.h}x{self.w}-{self.k}x{self.r}x{self.s}-s{self.stride}p{self.pad}{kind}"

    @property
    def out(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        rows, columns = (
            (size + 2 * self.pad - kernel) // self.stride + 1 for size, kernel in ((self.h, self.r), (self.w, self.s))
        )
        return rows, columns

    @property
    def depth(self) -> int:
        """Terms of each sum."""
        return self.c // self.groups * self.r * self.s

    @property
    def flops(self) -> int:
        """Multiplications and additions of one call."""
        return 2 * self.n * self.k * self.out[0] * self.out[1] * self.depth

    @property
    def saving(self) -> float:
        """Winograd's F(4x4, 3x3), where filters are such."""
        return 4.0 if (self.r, self.s, self.stride, self.groups) == (3, 3, 1, 1) else 1.0

    @property
    def a_dtype(self) -> str:
        """Data type of the pixels, as TVM calls it."""
        return DTYPES[self.dtype]

    def request(self, threads: int = 1) -> ConvCase:
        """Return what the systems are told."""
        return replace(self, threads=threads)


_CHOSEN = (
    ConvCase(64, 3, 224, 224, 64, 7, 7, stride=2, pad=3),
    ConvCase(64, 64, 56, 56, 64, 3, 3, pad=1),
    ConvCase(64, 1024, 14, 14, 256, 1, 1),
    ConvCase(32, 512, 14, 14, 512, 3, 3, pad=1),
    ConvCase(32, 64, 112, 112, 64, 3, 3, pad=1),
    ConvCase(8, 256, 102, 102, 256, 3, 3),
)
#: Width and number of blocks of ResNet-50's stages; expansion, channels, blocks and stride of MobileNetV2's.
_RESNET50 = ((64, 3), (128, 4), (256, 6), (512, 3))
_MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
)  # fmt: skip


def _resnet50() -> Iterator[ConvCase]:
    yield ConvCase(1, 3, 224, 224, 64, 7, 7, stride=2, pad=3)
    channels, size = 64, 56
    for stage, (width, blocks) in enumerate(_RESNET50):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            yield ConvCase(1, channels, size, size, width, 1, 1)
            yield ConvCase(1, width, size, size, width, 3, 3, stride=stride, pad=1)
            if not block:
                yield ConvCase(1, channels, size, size, 4 * width, 1, 1, stride=stride)
            size //= stride
            yield ConvCase(1, width, size, size, 4 * width, 1, 1)
            channels = 4 * width


def _mobilenet_v2() -> Iterator[ConvCase]:
    yield ConvCase(1, 3, 224, 224, 32, 3, 3, stride=2, pad=1)
    channels, size = 32, 112
    for expansion, width, blocks, first in _MOBILENET_V2:
        for block in range(blocks):
            stride, inner = first if not block else 1, expansion * channels
            if expansion > 1:
                yield ConvCase(1, channels, size, size, inner, 1, 1)
            yield ConvCase(1, inner, size, size, inner, 3, 3, stride=stride, pad=1, groups=inner)
            size //= stride
            yield ConvCase(1, inner, size, size, width, 1, 1)
            channels = width
    yield ConvCase(1, channels, size, size, 1280, 1, 1)


#: Suites by name; the layers of a network without those that come again.
SUITES = {"chosen": lambda: _CHOSEN, "resnet50": _resnet50, "mobilenet_v2": _mobilenet_v2}


def conv_suite(names: Sequence[str] = tuple(SUITES)) -> tuple[ConvCase, ...]:
    """Return the convolutions of some of the suites, each once.

    Raises
    ------
    UsageError
        If there is no suite of a name.
    """
    for name in names:
        if name not in SUITES:
            raise UsageError(f"there is no suite {name!r} of convolutions; choose from {', '.join(SUITES)}")
    return tuple(dict.fromkeys(case for name in names for case in SUITES[name]()))
