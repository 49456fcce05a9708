"""Whether a measured time can be believed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from qimeng_tvm.errors import CheckError


@dataclass(frozen=True)
class TimingVerdict:
    """What to make of a measured time.

    Attributes
    ----------
    kind : str
        ``ok``; ``rejected``: faster than the machine can be, a measuring error; ``suspicious``: so much faster than
        the best peer that somebody should look; ``unchecked``: there is no peak to hold it against.
    gflops : float
        The speed that the time amounts to.
    pct_of_peak : float
        0 when the peak is unknown.
    message : str
        One line, empty when ``ok``.
    """

    kind: Literal["ok", "rejected", "suspicious", "unchecked"]
    gflops: float
    pct_of_peak: float
    message: str = ""

    @property
    def believed(self) -> bool:
        """Whether the time may enter a record (a suspicious one may, with its message)."""
        return self.kind != "rejected"


def sanity(
    seconds: float,
    flops: float,
    peak_gflops: float,
    best_peer_gflops: float | None = None,
    *,
    peak_spread: float = 0.0,
    peer_factor: float = 2.0,
) -> TimingVerdict:
    """Hold a measured time against the machine's peak and the best peer.

    Parameters
    ----------
    seconds : float
        Time of one run.
    flops : float
        Operations of one run; a multiply-add is two.
    peak_gflops : float
        Measured peak for the operand dtype on as many threads; 0 when never measured.
    best_peer_gflops : float, optional
        Speed of the fastest library on the same case.
    peak_spread : float
        Relative spread of the peak when measured again, ``(max - min) / max``: what the clock of this machine
        does by itself, and the only thing that lets a true time exceed the peak.
    peer_factor : float
        Faster than this many times the best peer is flagged.
    """
    if not (math.isfinite(seconds) and seconds > 0 and math.isfinite(flops) and flops > 0):
        # A clock that stands still, or runs backwards, is a measuring error like any other.
        return TimingVerdict("rejected", 0.0, 0.0, f"a time of {seconds} s for {flops} operations is no measurement")
    if not (peak_gflops >= 0 and 0 <= peak_spread < 1):
        raise CheckError(f"peak {peak_gflops} GFLOP/s with spread {peak_spread} is not a peak: measure it again")
    gflops = flops / seconds / 1e9
    share = 100 * gflops / peak_gflops if peak_gflops else 0.0
    if peak_gflops and gflops > peak_gflops * (1 + peak_spread):
        text = (
            f"{gflops:.4g} GFLOP/s is {share:.1f} % of the measured peak of {peak_gflops:.4g} "
            f"(spread {100 * peak_spread:.1f} %): a measuring error"
        )
        return TimingVerdict("rejected", gflops, share, text)
    if best_peer_gflops and gflops > peer_factor * best_peer_gflops:
        text = f"{gflops:.4g} GFLOP/s is {gflops / best_peer_gflops:.2f} times the best peer: check what both compute"
        return TimingVerdict("suspicious", gflops, share, text)
    if not peak_gflops:
        return TimingVerdict("unchecked", gflops, share, "the peak of this machine was never measured")
    return TimingVerdict("ok", gflops, share)
