"""What legalizations of operators on images share."""

from __future__ import annotations

import tvm
from tvm import relax, te, tirx
from tvm.ir import Expr

#: What sums of products of these types are held in; of other types, in the type itself.
ACCUMULATE = {"bfloat16": "float32", "float16": "float32", "int8": "int32", "uint8": "int32"}


def padded(data: te.Tensor, before: tuple[int, int], extents: tuple[int, int], fill: Expr) -> te.Tensor:
    """Return an image (N, H, W, C) with a border; the same image when it needs none.

    Parameters
    ----------
    data : te.Tensor
        The image.
    before : tuple of int
        Rows above, columns on the left.
    extents : tuple of int
        Rows and columns with the border.
    fill : Expr
        What the border is made of.
    """
    images, rows, columns, channels = data.shape
    if before == (0, 0) and extents[0] <= int(rows) and extents[1] <= int(columns):
        return data

    def pixel(n: Expr, y: Expr, x: Expr, c: Expr) -> Expr:
        y, x = y - before[0], x - before[1]
        inside = tirx.all(y >= 0, y < rows, x >= 0, x < columns)
        return tirx.if_then_else(inside, data[n, y, x, c], fill)

    return te.compute((images, *extents, channels), pixel, name="pad")


def stock(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return what TVM itself makes of a call."""
    return tvm.ir.Op.get(str(call.op.name)).get_attr("FLegalize")(builder, call)
