"""Check random inference graphs against ONNX's semantics in float64 and ONNX Runtime; print and shrink what fails.

python scripts/fuzz_graphs.py --count 200 --seed 0
python scripts/fuzz_graphs.py --count 1 --seed 0 --first 17 --show
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.graph_fuzz.building import DEFAULT, OURS
from qimeng_tvm.graph_fuzz.checking import (
    CRASHED,
    NOT_OURS,
    PRELOAD,
    RIGHT,
    GraphResult,
    Setting,
    check_graph,
    check_seed,
)
from qimeng_tvm.graph_fuzz.evaluate import evaluate
from qimeng_tvm.graph_fuzz.graph import Graph
from qimeng_tvm.graph_fuzz.shrink import shrink
from qimeng_tvm.hardware import load


def main() -> int:
    """Check the graphs; return 1 when any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many random graphs")
    parser.add_argument("--seed", type=int, default=0, help="of the random graphs")
    parser.add_argument("--first", type=int, default=0, help="number of the first graph")
    parser.add_argument("--threads", type=int, default=1, help="cores that the code may use")
    parser.add_argument("--pipeline", choices=(OURS, DEFAULT), default=OURS, help="of relax.build")
    parser.add_argument("--hardware", default="host", help="profile of the machine that schedules are made for")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for a graph")
    parser.add_argument("--out", type=Path, help="folder for the models that fail, whole and shrunk")
    parser.add_argument("--show", action="store_true", help="print every graph and the functions that it becomes")
    parser.add_argument("--no-shrink", dest="shrink", action="store_false", help="print failing graphs as they are")
    options = parser.parse_args()
    setting = Setting(load(options.hardware), options.threads, options.pipeline, options.timeout)
    kinds: Counter[str] = Counter()
    start = time.monotonic()
    with Worker(preload=PRELOAD) as worker:
        for number in range(options.first, options.first + options.count):
            result = check_seed(worker, options.seed, number, setting)
            kinds[result.kind] += 1
            tell(result, number, options.show)
            if not result.ok:
                smallest = smaller(worker, result, setting) if options.shrink else result
                print(f"--- number {number} of seed {options.seed}\n{smallest.report()}\n---", flush=True)
                if options.out:
                    save(result.graph, options.out / f"{options.seed}-{number}.onnx")
                    save(smallest.graph, options.out / f"{options.seed}-{number}-small.onnx")
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print(f"{options.count} graphs in {time.monotonic() - start:.0f} s: {summary}")
    return 0 if set(kinds) <= {RIGHT, NOT_OURS} else 1


def tell(result: GraphResult, number: int, show: bool) -> None:
    """Print one line, or all of it."""
    nodes = " ".join(node.op for node in result.graph.nodes)
    print(f"{number:5} {result.kind:8} {nodes}", flush=True)
    if show:
        print(result.report(), flush=True)
    elif result.kind == NOT_OURS:
        print(f"      {result.message}", flush=True)


def smaller(worker: Worker, result: GraphResult, setting: Setting) -> GraphResult:
    """Return the result of the smallest graph that fails as another one does."""

    def fails(graph: Graph) -> bool:
        found = check_graph(worker, graph, setting)
        # Of a crash, the stage that it happened in must be the same.
        return found.kind == result.kind and (found.kind != CRASHED or _stage(found) == _stage(result))

    return check_graph(worker, shrink(result.graph, fails), setting)


def _stage(result: GraphResult) -> str:
    return result.message.partition(":")[0]


def save(graph: Graph, path: Path) -> None:
    """Write a model and its inputs."""
    graph.save(path, {name: tuple(array.shape) for name, array in evaluate(graph).items()})


if __name__ == "__main__":
    sys.exit(main())
