"""Check random valid operators (shape, dtype, layout, decisions) until told to stop; print how to reproduce a failure.

python scripts/fuzz.py --count 300 --seed 0
python scripts/fuzz.py --line "f32 matmul M=13 N=40 K=101, B transposed" --values '{"kc": 64}'
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.fuzz import FuzzCase, FuzzResult, run_case, run_random
from qimeng_tvm.hardware import host
from qimeng_tvm.request import describe, parse


def main() -> int:
    """Run the cases; return 1 when any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="how many random cases")
    parser.add_argument("--seed", type=int, default=0, help="of the random cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--line", help="check this operator instead of random ones")
    parser.add_argument("--values", default="{}", help="its decisions as JSON; what is missing is the analytic choice")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for a case")
    options = parser.parse_args()
    cores, start = host().cores, time.monotonic()
    results: list[FuzzResult] = []
    with Worker(preload=("tvm", "qimeng_tvm.fuzz", "qimeng_tvm.verify")) as worker:
        if options.line:
            results.append(run_case(worker, FuzzCase(parse(options.line), json.loads(options.values)), options.timeout))
            report(results[0], 0)
        else:
            for number in range(options.first, options.first + options.count):
                results.append(run_random(worker, options.seed, number, cores, options.timeout))
                report(results[-1], number)
    kinds = Counter(r.kind for r in results)
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print(f"{len(results)} cases in {time.monotonic() - start:.0f} s: {summary}")
    return 0 if all(r.ok for r in results) else 1


def report(result: FuzzResult, number: int) -> None:
    """Print one case: a line when it is right, and how to reproduce it when it is not."""
    print(f"{number:5} {result.kind:8} {describe(result.case.request)}", flush=True)
    if not result.ok:
        print(f"      {result.message}\n      {result.case.reproducer}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
