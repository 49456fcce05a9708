"""Times that can and cannot be true."""

from __future__ import annotations

import math

import pytest

from qimeng_tvm.check.timing import sanity
from qimeng_tvm.errors import CheckError


def test_below_peak_is_ok() -> None:
    verdict = sanity(1.0, 90e9, 100.0, 60.0)
    assert (verdict.kind, verdict.gflops, verdict.pct_of_peak, verdict.message) == ("ok", 90.0, 90.0, "")


@pytest.mark.parametrize(
    ("gflop", "spread", "kind"), [(100.5, 0.0, "rejected"), (100.5, 0.01, "ok"), (102, 0.01, "rejected")]
)
def test_only_the_peaks_own_spread_lets_it_be_passed(gflop: float, spread: float, kind: str) -> None:
    verdict = sanity(1.0, gflop * 1e9, 100.0, peak_spread=spread)
    assert verdict.kind == kind and verdict.believed == (kind == "ok")


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_no_measurement(seconds: float) -> None:
    assert not sanity(seconds, 1e9, 100.0).believed


def test_far_above_the_best_peer_is_flagged_and_kept() -> None:
    verdict = sanity(1.0, 90e9, 100.0, 40.0)
    assert verdict.kind == "suspicious" and verdict.believed and "2.25 times" in verdict.message
    assert sanity(1.0, 80e9, 100.0, 40.0).kind == "ok"


def test_impossible_beats_suspicious() -> None:
    assert sanity(1.0, 300e9, 100.0, 40.0).kind == "rejected"


def test_unknown_peak_is_said() -> None:
    assert sanity(1.0, 90e9, 0.0).kind == "unchecked"
    assert sanity(1.0, 90e9, 0.0, 40.0).kind == "suspicious"


@pytest.mark.parametrize(("peak", "spread"), [(-1.0, 0.0), (100.0, 1.0), (100.0, -0.1), (math.nan, 0.0)])
def test_a_peak_that_is_none(peak: float, spread: float) -> None:
    with pytest.raises(CheckError):
        sanity(1.0, 1e9, peak, peak_spread=spread)
