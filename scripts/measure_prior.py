"""Measure what the cost model starts from, and write it to qimeng_tvm/search/prior/<isa>.jsonl.

    python scripts/measure_prior.py --profile zen5 --records FOLDER

Points of operators that no benchmark has, drawn at random and by search, on one machine; ``--profile`` is the machine
as a profile, for features are shares of its caches and registers. Measurements of other profiles in the file stay.
What is in FOLDER already is not measured again. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from qimeng_tvm.api import task_of
from qimeng_tvm.files import write_atomic
from qimeng_tvm.hardware import Hardware, configure_threads, host, measured
from qimeng_tvm.request import parse
from qimeng_tvm.schedule.apply import Task
from qimeng_tvm.search import RecordDatabase, tune
from qimeng_tvm.search.features import told_of
from qimeng_tvm.search.knowledge import SHIPPED, Known, read_known, write_known
from qimeng_tvm.search.records import rule_id

LINES = (
    "f32 GEMM 96x96x96",
    "f32 GEMM 192x160x224",
    "f32 GEMM 384x384x384",
    "f32 GEMM 640x640x640",
    "f32 GEMM 1536x512x768",
    "f32 GEMM 100x200x300",
    "f32 GEMM 511x509x255",
    "f32 GEMM 2048x64x64",
    "f32 GEMM 320x256x512 NT",
    "f32 GEMM 256x384x320 TN",
    "f32 GEMM 8x1024x1024 with weights",
    "f32 GEMM 32x4096x1024 with weights",
    "f32 GEMM 128x3072x768 with weights",
    "f32 GEMM 512x512x2048 with weights",
    "f32 GEMM 1x4096x1024 with weights",
    "f32 GEMM 4x768x3072 with weights",
    "batch 12 f32 GEMM 128x64x128",
    "f32 GEMM 768x768x768, 2 threads",
    "f32 GEMM 64x4096x1024 with weights, 2 threads",
    "bf16 GEMM 256x256x256",
    "bf16 GEMM 768x768x768",
    "bf16 GEMM 129x255x383",
    "bf16 GEMM 64x512x2048 with weights",
    "bf16 GEMM 16x4096x2048 with weights",
    "u8s8 GEMM 256x256x256",
    "u8s8 GEMM 123x321x213",
    "u8s8 GEMM 768x512x1024 with weights",
    "u8s8 GEMM 32x2048x512 with weights",
    "int8 GEMM 384x384x384 with weights",
)
#: Trials of each operator: so many at random, then the rest by search, for the region that matters.
RANDOM, ALL = 40, 64
OUT = Path(__file__).resolve().parents[1] / "qimeng_tvm" / "search" / SHIPPED


def measure(line: str, machine: Hardware, database: RecordDatabase) -> Task:
    """Tune an operator by chance and by search."""
    request = parse(line)
    threads = request.threads or 1
    configure_threads(threads)
    task = task_of(request, machine, threads)
    for strategy, trials in (("random", RANDOM), ("evolve", ALL)):
        tune(task, trials, database.folder, machine, threads, strategy=strategy)
    return task


def known_of(task: Task, profile: str, database: RecordDatabase) -> Known:
    """Return what the records have of a task; times with four digits are exact enough."""
    points = tuple(
        (dict(r.decisions), float(f"{r.seconds_min:.4g}") if r.seconds_min is not None else math.inf)
        for r in database.of_task(task)
        if r.status != "schedule"
    )
    return Known(rule_id(task), profile, told_of(task.info), points)


def main() -> None:
    """Measure, and rewrite the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--records", required=True, type=Path)
    options = parser.parse_args()
    profile = Hardware.load(options.profile)
    machine = measured(host())
    if machine.cpu != profile.cpu:
        parser.error(f"this machine is a {machine.cpu}, the profile {options.profile} a {profile.cpu}")
    database = RecordDatabase(options.records)
    path = OUT / f"{machine.isa}.jsonl"
    kept = path.read_text().splitlines() if path.exists() else []
    lines = [line for line in kept if read_known(line).profile != options.profile]
    for line in LINES:
        known = known_of(measure(line, machine, database), options.profile, database)
        lines.append(write_known(known))
        print(f"{line}: {len(known.points)} points", flush=True)
    write_atomic(path, "".join(f"{line}\n" for line in lines))
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
