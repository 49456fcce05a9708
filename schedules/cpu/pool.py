# author: hand
"""Poolings on CPUs: windows without weights, in the loops of the depthwise convolution.

The largest or the sum of each window is found in registers, channels in the lanes; dividing by the number of pixels is
part of the epilogue. An average over a whole image has no columns to hold in registers, and takes more channels.
"""

from __future__ import annotations

from qimeng_tvm.schedules.cpu.depthwise import Depthwise

from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.schedule import BlockInfo
from qimeng_tvm.schedule import window_blocking as blocking


class Pool(Depthwise):
    """Maxima and averages of windows, tile by tile in registers."""

    name = "cpu.pool"

    def match(self, block: BlockInfo, hardware: Hardware) -> bool:
        """Poolings with channels innermost."""
        return block.kind == "pool" and blocking.has_fixed_vectors(hardware)
