"""Rows of the benchmark and what they add up to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from qimeng_tvm.bench.suite import DTYPES
from qimeng_tvm.files import write_atomic

#: Keys that every row of the JSON has, in this order.
ROW_KEYS = ("case", "dtype", "threads", "system", "seconds_min", "seconds_median", "gflops", "spread")


@dataclass(frozen=True)
class Row:
    """One system on one case.

    Attributes
    ----------
    case, dtype, threads, system
        Which measurement.
    seconds_min, seconds_median, gflops, spread : float or None
        What came out; ``gflops`` from the median. None when there was no measurement, and ``extra["note"]`` says why.
    extra : Mapping[str, Any]
        Further keys: ``wrong`` (the answer is, so nobody has to beat it), ``error`` (true: it failed), ``refused``,
        ``note``, ``peak_gflops`` (of the register-only loop, timed in turns with the systems), ``saving`` (how many
        times fewer operations may do), ``variant``,
        ``out_dtype``, ``repeats``, ``inner``, ``attempts`` (of timing the group, until the machine was calm),
        ``decisions``...
    """

    case: str
    dtype: str
    threads: int
    system: str
    seconds_min: float | None = None
    seconds_median: float | None = None
    gflops: float | None = None
    spread: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> tuple[str, str, int]:
        """Rows with the same group were measured in turns and may be compared."""
        return self.case, self.dtype, self.threads

    @property
    def counts(self) -> bool:
        """It was measured and its answer is right."""
        return self.seconds_median is not None and not self.extra.get("wrong", False)

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return {**{key: getattr(self, key) for key in ROW_KEYS}, **dict(self.extra)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Row:
        """Return the row that :meth:`to_json` wrote."""
        return Row(**{k: data[k] for k in ROW_KEYS}, extra={k: v for k, v in data.items() if k not in ROW_KEYS})


@dataclass(frozen=True)
class Duel:
    """Ours against the best right peer on one case.

    ``ratio`` is the peer's median over our median: over 1, ours is faster. It is 0 when ours gave no right answer.
    """

    case: str
    dtype: str
    threads: int
    ratio: float
    best_peer: str
    note: str = ""


#: Our own operators with the analytic decisions, beside the tuned ones when there are such.
UNTUNED = "qimeng_untuned"


def _groups(rows: Iterable[Row]) -> dict[tuple[str, str, int], list[Row]]:
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def duels(rows: Iterable[Row], ours: str) -> list[Duel]:
    """Compare ours with the best peer, case by case; cases that no peer does are left out."""
    found = []
    for (case, dtype, threads), members in _groups(rows).items():
        mine = [r for r in members if r.system == ours]
        peers = [r for r in members if r.system not in (ours, UNTUNED) and r.counts]
        if not mine or not peers:
            continue
        best = min(peers, key=lambda r: r.seconds_median or math.inf)
        if mine[0].counts:
            ratio = (best.seconds_median or 0.0) / (mine[0].seconds_median or math.inf)
            found.append(Duel(case, dtype, threads, ratio, best.system))
        else:
            note = str(mine[0].extra.get("note") or "wrong answer")
            found.append(Duel(case, dtype, threads, 0.0, best.system, note))
    return found


def untuned_shares(rows: Iterable[Row], ours: str) -> dict[tuple[str, str, int], float]:
    """Return the speed of the analytic decisions as a share of the tuned ones', case by case."""
    shares = {}
    for group, members in _groups(rows).items():
        seconds = {r.system: r.seconds_median for r in members if r.counts and r.seconds_median}
        tuned, untuned = seconds.get(ours), seconds.get(UNTUNED)
        if tuned and untuned:
            shares[group] = tuned / untuned
    return shares


def _standing(found: Sequence[Duel]) -> dict[str, Any]:
    """Geometric mean over the cases answered, and the minimum over all: an unanswered case makes it 0."""
    answered = [d.ratio for d in found if d.ratio > 0]
    return {
        "cases": len(found),
        "geomean_vs_best_peer": geometric_mean(answered) if answered else None,
        "min_vs_best_peer": min((d.ratio for d in found), default=None),
        "losses": sum(d.ratio < 1.0 for d in found),
        "unanswered": sum(d.ratio <= 0 for d in found),
    }


@dataclass(frozen=True)
class BenchResult:
    """A whole run.

    Attributes
    ----------
    machine, versions : Mapping[str, Any]
        Where, and with which releases.
    rows : tuple of Row
        Every system on every case.
    ours : str
        Name of the system that the summary is about.
    """

    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    rows: tuple[Row, ...]
    ours: str = "qimeng"

    def systems(self) -> list[str]:
        """Return ours first, then the others in the order of the rows."""
        return sorted(dict.fromkeys(row.system for row in self.rows), key=lambda name: name != self.ours)

    def groups(self) -> dict[tuple[str, str, int], dict[str, Row]]:
        """Return the rows that were timed in turns: of each case, dtype and thread count, by system."""
        found: dict[tuple[str, str, int], dict[str, Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, {})[row.system] = row
        return found

    def duels(self) -> list[Duel]:
        """See :func:`duels`."""
        return duels(self.rows, self.ours)

    def losses(self) -> list[Duel]:
        """Cases where a peer is faster, worst first."""
        return sorted((d for d in self.duels() if d.ratio < 1.0), key=lambda d: d.ratio)

    def percent_of_peak(self, row: Row) -> float | None:
        """Return a row's share of the peak timed in turns with it, 0 to 100; None when either is unknown."""
        peak = float(row.extra.get("peak_gflops", 0.0))
        return 100.0 * row.gflops / peak if peak and row.gflops is not None else None

    def summary(self) -> dict[str, Any]:
        """Return the summary as the JSON has it; ratios are of medians."""
        found = self.duels()
        # Those of products first, in their order; models have others.
        threads, dtypes = sorted({d.threads for d in found}), list(dict.fromkeys([*DTYPES, *(d.dtype for d in found)]))
        dtypes = [t for t in dtypes if any(d.dtype == t for d in found)]
        shares: dict[str, dict[str, float]] = {}
        suspect = []
        for row in self.rows:
            share = self.percent_of_peak(row)
            if row.system == self.ours and row.counts and share is not None:
                shares.setdefault(f"{row.dtype}/{row.threads}", {})[row.case] = share
            # Nothing is faster than the machine: a measuring error, or a method that computes less.
            if share is not None and share > 100.0 * row.extra.get("saving", 1.0):
                suspect.append({"case": row.case, "dtype": row.dtype, "threads": row.threads, "system": row.system,
                                "pct_of_peak": share})  # fmt: skip
        whole = _standing(found)
        return {
            "geomean_vs_best_peer": whole["geomean_vs_best_peer"],
            "min_vs_best_peer": whole["min_vs_best_peer"],
            "losses": [vars(d) for d in self.losses()],
            "pct_of_peak": shares,
            "cases": whole["cases"],
            "unanswered": whole["unanswered"],
            "over_peak": suspect,
            "by_threads": {str(n): _standing([d for d in found if d.threads == n]) for n in threads},
            "by_dtype": {t: _standing([d for d in found if d.dtype == t]) for t in dtypes},
            "by_dtype_and_threads": {
                f"{t}/{n}": _standing([d for d in found if d.dtype == t and d.threads == n])
                for t in dtypes
                for n in threads
            },
            **self._untuned(),
        }

    def _untuned(self) -> dict[str, Any]:
        """How near the analytic decisions come to the tuned ones; nothing when nothing was tuned."""
        shares = untuned_shares(self.rows, self.ours)
        if not shares:
            return {}
        mean = geometric_mean(shares.values())
        worst = min(shares, key=lambda group: shares[group])
        case = dict(zip(("case", "dtype", "threads"), worst, strict=True))
        return {"untuned_vs_tuned": {"cases": len(shares), "geomean": mean, "min": shares[worst], "worst": case}}

    def to_json(self) -> dict[str, Any]:
        """Return the whole result as one JSON object."""
        return {
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "rows": [row.to_json() for row in self.rows],
            "summary": self.summary(),
        }

    def write(self, path: Path) -> None:
        """Write the JSON in one step: the file is the old one or the new one, never half."""
        write_atomic(path, json.dumps(self.to_json(), indent=1) + "\n")
