"""What ``run`` hands back, and writes beside the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qimeng_tvm.check.audit import AuditReport
from qimeng_tvm.check.numbers import NumbersReport
from qimeng_tvm.check.timing import TimingVerdict
from qimeng_tvm.compiler import Compiled, header_text, loader_text
from qimeng_tvm.files import write_atomic
from qimeng_tvm.hardware import Hardware, to_json
from qimeng_tvm.request import Request, describe


@dataclass(frozen=True)
class Peer:
    """A library on the same operator."""

    name: str
    gflops: float | None
    seconds: float | None
    note: str = ""


@dataclass(frozen=True)
class RunResult:
    """What ``run`` made and measured.

    Attributes
    ----------
    request : Request
        As understood.
    hardware : Hardware
        The machine, with measured peaks.
    rule, family, decisions
        How the operator was scheduled.
    seconds, gflops : float
        Median time of a call, and what it amounts to.
    peak_gflops, pct_of_peak : float
        The machine's register-only loop, timed in turns with the operator, and the operator's share of it (0 to 100);
        0 when the machine has no such loop.
    numbers, code, timing
        Reports of the checks; ``verified`` and ``audited`` sum them up.
    peers : tuple of Peer
        The libraries present, interleaved with ours in the same run.
    artifact : Path
        Folder with the library, header, loader, trace, inner loop and ``run.json``.
    trials : int
        Measured trials behind the decisions; 0 for the analytic ones.
    """

    request: Request
    hardware: Hardware
    threads: int
    rule: str
    family: str
    intrins: tuple[str, ...]
    decisions: Mapping[str, int | str]
    trials: int
    seconds: float
    gflops: float
    peak_gflops: float
    pct_of_peak: float
    numbers: NumbersReport
    code: AuditReport
    timing: TimingVerdict
    peers: tuple[Peer, ...]
    artifact: Path

    @property
    def verified(self) -> bool:
        """The numbers are right and the time can be believed."""
        return self.numbers.ok and self.timing.believed

    @property
    def audited(self) -> bool:
        """The machine code is what it should be."""
        return self.code.ok

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints and ``run.json`` holds."""
        return {
            "request": {"text": describe(self.request), **asdict(self.request)},
            "hardware": to_json(self.hardware),
            "threads": self.threads,
            "rule": self.rule,
            "family": self.family,
            "intrins": list(self.intrins),
            "decisions": dict(self.decisions),
            "trials": self.trials,
            "seconds": self.seconds,
            "gflops": round(self.gflops, 3),
            "peak_gflops": round(self.peak_gflops, 3),
            "pct_of_peak": round(self.pct_of_peak, 2),
            "verified": self.verified,
            "audited": self.audited,
            "checks": {
                "numbers": {"kind": self.numbers.kind, "cases": self.numbers.cases, "message": self.numbers.message,
                            "error_ratio": self.numbers.error_ratio},
                "code": {"counts": dict(self.code.counts), "spills": self.code.spills,
                         "problems": list(self.code.problems)},
                "timing": {"kind": self.timing.kind, "message": self.timing.message},
            },
            "peers": [asdict(p) for p in self.peers],
            "artifact": str(self.artifact),
        }  # fmt: skip


def write_artifact(folder: Path, result: RunResult, compiled: Compiled) -> None:
    """Write header, loader, trace, inner loop and ``run.json`` beside the library, each atomically."""
    texts = {
        "operator.h": header_text(compiled, result.request),
        "load.py": loader_text(compiled, result.request),
        "trace.json": compiled.trace + "\n",
        "inner_loop.s": result.code.inner_loop + "\n",
        "run.json": json.dumps(result.to_json(), indent=2) + "\n",
    }
    for name, text in texts.items():
        write_atomic(folder / name, text)
