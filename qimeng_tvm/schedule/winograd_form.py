"""The form that a 3x3 convolution is computed in by Winograd's minimal filtering.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): F(m x m, 3 x 3) makes m x m output
pixels of a tile of (m + 2) x (m + 2) input pixels with (m + 2)^2 multiplications a channel instead of 9 m^2. Nothing
here depends on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qimeng_tvm.schedule.contract import BlockInfo
from qimeng_tvm.schedule.conv_form import filled_width

#: Names of the blocks: pixels with a border of zeros, transformed pixels, the products, whole tiles transformed back,
#: the result.
PAD, PIXELS, PRODUCTS, BACK, OUT = "winograd_pad", "winograd_pixels", "winograd", "winograd_back", "winograd_out"
#: Rows and columns of the filters.
TAPS = 3
#: Output pixels of a tile, in each direction. Larger tiles save more, and lose digits.
TILE = 2

Matrix = npt.NDArray[np.float64]
#: Transforms of pixels, filters and results for F(2, 3).
B_T: Matrix = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64)
G: Matrix = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float64)
A_T: Matrix = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64)


@dataclass(frozen=True)
class WinogradForm:
    """A 3x3 convolution of stride 1 with NHWC pixels.

    Attributes
    ----------
    batch, rows, columns : int
        Images, and extents of the output.
    channels, filters : int
        Depth of the sums, and channels of the output.
    """

    batch: int
    rows: int
    columns: int
    channels: int
    filters: int

    @property
    def points(self) -> int:
        """Products that a tile takes for a channel and a filter."""
        return int(B_T.shape[0]) ** 2

    @property
    def tile_rows(self) -> int:
        """Rows of tiles."""
        return -(-self.rows // TILE)

    @property
    def x(self) -> int:
        """Tiles of a row, so many that a good micro-kernel takes them whole."""
        return filled_width(-(-self.columns // TILE))

    @property
    def f(self) -> int:
        """Filters that panels are made of."""
        return self.filters

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns of the input with its border."""
        return self.tile_rows * TILE + TAPS - 1, self.x * TILE + TAPS - 1


def told_form(form: WinogradForm) -> list[int]:
    """Return what the anchor is annotated with."""
    return [form.batch, form.rows, form.columns, form.channels, form.filters]


def form_of(info: BlockInfo) -> WinogradForm:
    """Return the form of products that were read."""
    assert info.window is not None  # the reader gives one
    return WinogradForm(info.batch // len(B_T) ** 2, *info.window.out, info.k, info.n)


def transformed(filters: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return filters (3, 3, channels, filters) as (points, channels, filters), computed in float64."""
    wide = np.einsum("ir,js,rscf->ijcf", G, G, filters.astype(np.float64), optimize=True)
    return np.ascontiguousarray(wide.reshape(-1, *filters.shape[2:]), np.float32)
