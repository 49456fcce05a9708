"""The form that a convolution is computed in: its extents rounded up to what micro-kernels take whole.

Nothing here depends on the machine, so that the same convolution is the same function, of the same records, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_tvm.schedule.contract import BlockInfo, Window

#: Names of the blocks before the anchor: pixels with a border of zeros (where they need one), the pixels that each
#: row of the window reads for an output pixel, filters by group.
PAD, GATHER, FILTERS = "conv2d_pad", "conv2d_gather", "conv2d_filters"
#: Multiply-adds that one instruction sums up for a lane, by the type of the pixels; 1 for all others.
_PACK = {"int8": 4, "uint8": 4, "bfloat16": 2, "float16": 2}
#: Filters that a vector holds: few enough to waste little, many enough for the longest vectors of common machines.
_VECTOR = 16
#: Rows of micro-kernels that keep a machine busy.
_ROWS = range(4, 15)


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of ``unit`` that is >= ``value``."""
    return -(-value // unit) * unit


def filled_width(width: int) -> int:
    """Return the pixels of a row, rounded up so that a good micro-kernel takes them whole."""
    if width < _ROWS.start:
        return width
    return next(w for w in range(width, 2 * width) if any(w % rows == 0 for rows in _ROWS))


@dataclass(frozen=True)
class ConvForm:
    """A convolution with NHWC pixels, and what it is rounded up to.

    Groups too narrow for a vector are computed several at once, as one of as many channels and filters with zeros where
    a channel is not a filter's own.

    Attributes
    ----------
    batch : int
        Images.
    window : Window
        Of the true convolution.
    channels, filters : int
        Of a group of the true convolution.
    dtype : str
        Of the pixels.
    """

    batch: int
    window: Window
    channels: int
    filters: int
    dtype: str

    @property
    def merged(self) -> int:
        """Groups that are computed as one."""
        groups = self.window.groups
        many = [t for t in range(1, groups + 1) if groups % t == 0 and t * self.filters >= _VECTOR]
        return many[0] if many else groups

    @property
    def groups(self) -> int:
        """Groups that are left."""
        return self.window.groups // self.merged

    @property
    def pack(self) -> int:
        """Channels that come in one go."""
        return _PACK.get(self.dtype, 1)

    @property
    def c(self) -> int:
        """Channels of a merged group, in whole packs; a reduction has at least two steps."""
        c = round_up(self.merged * self.channels, self.pack)
        return c if c * self.window.kernel[1] > self.pack else 2 * self.pack

    @property
    def f(self) -> int:
        """Filters of a merged group, in whole vectors."""
        f = self.merged * self.filters
        return round_up(f, _VECTOR if f > _VECTOR // 2 else _VECTOR // 2)

    @property
    def x(self) -> int:
        """Pixels of a row of the output, so many that a good micro-kernel takes them whole."""
        return filled_width(self.window.out[1])

    @property
    def rows(self) -> int:
        """Rows of the padded input."""
        w = self.window
        return (w.out[0] - 1) * w.stride[0] + (w.kernel[0] - 1) * w.dilation[0] + 1

    @property
    def columns(self) -> int:
        """Pixels of a row of the padded input, of those ``stride`` apart."""
        w = self.window
        return self.x + (w.kernel[1] - 1) * w.dilation[1] // w.stride[1]


def form_of(info: BlockInfo) -> ConvForm:
    """Return the form of a convolution that was read."""
    assert info.window is not None  # the reader of convolutions gives one
    rows, columns = info.window.kernel
    return ConvForm(info.batch, info.window, info.k // (rows * columns), info.n, info.a_dtype)
