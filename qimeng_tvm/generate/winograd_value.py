"""What a convolution by Winograd's method gives, in float64: of pixels and of filters that are transformed already."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qimeng_tvm.schedule.winograd_form import A_T, B_T, TAPS, TILE

Array = npt.NDArray[Any]


def by_tiles(pixels: Array, filters: Array, padding: tuple[int, int, int, int]) -> Array:
    """Return the result, from the definition: transform, multiply and add up, transform back.

    Parameters
    ----------
    pixels : ndarray
        NHWC.
    filters : ndarray
        Transformed: points of a tile, channels, filters.
    padding : tuple of int
        Zeros at the top, left, bottom and right.
    """
    return _computed(pixels, filters, padding, B_T, A_T)


def sizes_by_tiles(pixels: Array, filters: Array, padding: tuple[int, int, int, int]) -> Array:
    """Return the sums of what is added up on the way, without its signs: roundings are relative to these."""
    return _computed(np.abs(pixels), np.abs(filters), padding, np.abs(B_T), np.abs(A_T))


def _computed(pixels: Array, filters: Array, padding: tuple[int, int, int, int], b: Array, a: Array) -> Array:
    images, height, width, channels = pixels.shape
    top, left, bottom, right = padding
    rows, columns = height + top + bottom - TAPS + 1, width + left + right - TAPS + 1
    down, across = -(-rows // TILE), -(-columns // TILE)
    size = len(b)
    padded = np.zeros((images, down * TILE + TAPS - 1, across * TILE + TAPS - 1, channels))
    padded[:, top : top + height, left : left + width] = pixels
    tiles = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::TILE, ::TILE]
    moved = np.einsum("pi,qj,nyxcij->pqnyxc", b, b, tiles, optimize=True)
    points = filters.reshape(size, size, *filters.shape[1:])
    products = np.einsum("pqnyxc,pqcf->pqnyxf", moved, points, optimize=True)
    back = np.einsum("ip,jq,pqnyxf->nyixjf", a, a, products, optimize=True)
    whole = back.reshape(images, down * TILE, across * TILE, filters.shape[2])
    return np.ascontiguousarray(whole[:, :rows, :columns])
