"""The result of the search benchmark: what the runs of one or several files come to, as data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qimeng_tvm.bench.against import AgainstStock, Verdict, against_stock, stock_summary, verdicts
from qimeng_tvm.bench.curves import Curve, longest, machine_notes
from qimeng_tvm.bench.efficiency import Standing, by, standings, summary


@dataclass(frozen=True)
class Report:
    """All that is told of the runs.

    Attributes
    ----------
    curves : tuple of Curve
        The longest run of each operator, system and seed.
    standings, against, verdicts
        What they come to.
    notes : tuple of str
        What to bear in mind.
    """

    curves: tuple[Curve, ...]
    standings: tuple[Standing, ...]
    against: tuple[AgainstStock, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]

    @staticmethod
    def of(curves: Iterable[Curve]) -> Report:
        """Return what any runs come to."""
        kept = longest(curves)
        notes = (*machine_notes(kept), *_length_notes(kept))
        return Report(kept, standings(kept), against_stock(kept), verdicts(kept), notes)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; what is infinite is null."""
        data = {
            "summary": summary(self.standings),
            "standings": [asdict(s) for s in self.standings],
            "against_stock": {
                "summary": stock_summary(self.against),
                "operators": [
                    {**asdict(s), "fewer": s.fewer, "fewer_than_first": s.fewer_than_first} for s in self.against
                ],
            },
            "verdicts": [{**asdict(v), "says": v.says} for v in self.verdicts],
            "notes": self.notes,
            "curves": [asdict(c) for c in self.curves],
        }
        return {key: _finite(value) for key, value in data.items()}


def _length_notes(curves: Sequence[Curve]) -> list[str]:
    lengths = {s: {c.trials for c in own} for s, own in by(curves, lambda c: c.system).items()}
    if len(set.union(set(), *lengths.values())) < 2:
        return []
    told = ", ".join(f"{s} {'/'.join(map(str, sorted(n)))}" for s, n in lengths.items())
    return [f"runs are of different lengths ({told} trials); a run's last trial holds its finalists' second timing"]


def _finite(value: Any) -> Any:
    """Infinity is no number of JSON."""
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
