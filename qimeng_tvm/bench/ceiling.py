"""The machine's peak, timed in turns with the systems: what "100 %" is moves with the clock and the neighbours."""

from __future__ import annotations

from qimeng_tvm.bench.timing import Sample, Sampler, time_calls
from qimeng_tvm.hardware.model import Hardware, peak_dtype
from qimeng_tvm.hardware.peak import PeakLoop, peak_loop
from qimeng_tvm.hardware.threads import configure_threads, settle_threads

#: Name of the register-only loop among the systems of one group; no system may have it.
NAME = "(peak)"


class Ceiling:
    """Register-only loops of one machine, made when first asked for; without a machine there are none."""

    def __init__(self, hardware: Hardware | None) -> None:
        self._hardware = hardware
        self._loops: dict[tuple[str, int], PeakLoop | None] = {}

    def loop(self, a_dtype: str, threads: int) -> PeakLoop | None:
        """Return the loop for an operand dtype; None when the machine has no primitive for it."""
        if self._hardware is None:
            return None
        key = peak_dtype(a_dtype), threads
        if key not in self._loops:
            configure_threads(threads)
            self._loops[key] = peak_loop(self._hardware, *key)
        return self._loops[key]

    def samplers(self, a_dtype: str, threads: int) -> dict[str, Sampler]:
        """Return what goes into the turns beside the systems: one sampler, or nothing."""
        loop = self.loop(a_dtype, threads)
        return {NAME: _sampler(loop, threads)} if loop is not None else {}

    def floors(self, a_dtype: str, threads: int) -> dict[str, float]:
        """Return the seconds that the loop takes on this machine when nobody else is there."""
        loop = self.loop(a_dtype, threads)
        if loop is None or self._hardware is None:
            return {}
        peaks = self._hardware.peaks if threads == 1 else self._hardware.peaks_all
        known = peaks.get(peak_dtype(a_dtype), 0.0)
        whole = threads in (1, self._hardware.cores)
        return {NAME: loop.operations / known / 1e9} if known and whole else {}

    def gflops(self, sample: Sample | Exception | None, a_dtype: str, threads: int) -> float:
        """Return the median speed that a sample of the loop amounts to; 0 when there is none."""
        loop = self.loop(a_dtype, threads)
        return loop.operations / sample.seconds_median / 1e9 if loop and isinstance(sample, Sample) else 0.0


def _sampler(loop: PeakLoop, threads: int) -> Sampler:
    settled = False

    def sample(inner: int) -> float:
        nonlocal settled
        if not settled:  # the systems' preparation may have left another count, and the threads elsewhere
            settle_threads(threads)
            settled = True
        loop.call()
        return time_calls(loop.call, inner)

    return sample
