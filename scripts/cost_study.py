"""How well cost models rank points of an operator of which they have seen nothing, or a few points.

    python scripts/cost_study.py RECORDS_FOLDER

Takes the records that scripts/measure_prior.py keeps. Every operator in turn is held out: a model learns from the
others, and from none or some of its own points, and ranks the rest. Told, as means over operators and draws: rank
correlation with the measured times, the same among points within 1.5x of the best, and the speed of the best of the
first eight as a share of the best of all. The analytic decisions are left out: they are always measured first.
MetaSchedule's per-store features are taken from the schedule of every point.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from measure_prior import LINES
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from xgboost import DMatrix

from qimeng_tvm.api import task_of
from qimeng_tvm.hardware import host, measured
from qimeng_tvm.request import parse
from qimeng_tvm.schedule.apply import Task, build_schedule
from qimeng_tvm.schedule.contract import Values
from qimeng_tvm.schedule.prepack import MAIN, split_prepack
from qimeng_tvm.search import RecordDatabase
from qimeng_tvm.search.context import plain_context
from qimeng_tvm.search.cost import ALONE, SHARED, Group, trained
from qimeng_tvm.search.features import Matrix, block_row
from qimeng_tvm.search.records import rule_id

OWN = (0, 8, 24)
DRAWS = 2
LEAST = 40


@dataclass(frozen=True)
class Operator:
    """Measured points of one operator: features by kind, the analytic estimate, seconds."""

    rule: str
    rows: Mapping[str, Matrix]
    estimate: Matrix
    seconds: Matrix


def read(line: str, database: RecordDatabase) -> Operator | None:
    """Return an operator's points; None when there are too few."""
    request = parse(line)
    task = task_of(request, measured(host()), request.threads or 1)
    records = [
        r
        for r in database.of_task(task)
        if r.status == "ok" and r.seconds_min and dict(r.decisions) != task.space.defaults()
    ]
    if len(records) < LEAST:
        return None
    values = [r.decisions for r in records]
    ours = np.array([block_row(v, task.info, task.hardware) for v in values])
    stores = stores_of(task, values)
    return Operator(
        rule_id(task),
        {"ours": ours, "stores": stores, "ours and stores": np.hstack([ours, stores])},
        np.array([task.rule.estimate(v, task.info, task.hardware) for v in values]),
        np.array([r.seconds_min for r in records]),
    )


def stores_of(task: Task, points: Sequence[Values]) -> Matrix:
    """Return MetaSchedule's features of each point: of all its stores the sum and the maximum, and how many."""
    context = plain_context(task, None)
    extractor = ms.feature_extractor.PerStoreFeature()
    arguments = ms.arg_info.ArgInfo.from_entry_func(tvm.IRModule({"main": task.func}), False)
    rows = []
    for values in points:
        candidate = ms.search_strategy.MeasureCandidate(_operator(build_schedule(task, values)), arguments)
        table = extractor.extract_from(context, [candidate])[0].numpy()
        row = np.concatenate([table.sum(0), table.max(0), [len(table)]])
        rows.append(np.sign(row) * np.log1p(np.abs(row)))
    return np.array(rows)


def _operator(schedule: Any) -> Any:
    """Return the schedule without the packing of a constant, which the extractor refuses."""
    operator = split_prepack(schedule.mod[MAIN])
    if not operator.packs:
        return schedule
    return Schedule(tvm.IRModule({MAIN: operator.main.with_attr("global_symbol", MAIN)}))


def _ranks(values: Matrix) -> Matrix:
    return np.argsort(np.argsort(values))


def _agreement(predicted: Matrix, seconds: Matrix) -> float:
    return float(np.corrcoef(_ranks(predicted), _ranks(seconds))[0, 1])


def figures(predicted: Matrix, seconds: Matrix) -> tuple[float, float, float]:
    """Return the three figures of one ranking; a lower prediction is a faster point."""
    near = seconds < 1.5 * seconds.min()
    first = np.argsort(predicted)[:8]
    among = _agreement(predicted[near], seconds[near]) if near.sum() > 4 else float("nan")
    return _agreement(predicted, seconds), among, float(seconds.min() / seconds[first].min())


def group_of(operator: Operator, kind: str, which: Any = slice(None)) -> Group:
    """Return some of an operator's points for training."""
    return Group(list(operator.rows[kind][which]), list(operator.seconds[which]))


def predict(groups: Sequence[Group], rows: Matrix, parameters: dict[str, Any]) -> Matrix:
    """Train and predict."""
    return np.asarray(trained(groups, 0, parameters).predict(DMatrix(rows)))


def main() -> None:
    """Study every operator, and print the table."""
    database = RecordDatabase(sys.argv[1])
    operators = [o for line in LINES if (o := read(line, database)) is not None]
    print(f"{len(operators)} operators, {sum(len(o.seconds) for o in operators)} points")
    found: dict[tuple[int, str], list[tuple[float, float, float]]] = defaultdict(list)
    rng = np.random.default_rng(0)
    for held in operators:
        others = [o for o in operators if o is not held and o.rule == held.rule]
        if not others:
            continue
        for own in OWN:
            for _ in range(DRAWS if own else 1):
                order = rng.permutation(len(held.seconds))
                seen, rest = order[:own], order[own:]
                found[own, "estimate"].append(figures(held.estimate[rest], held.seconds[rest]))
                for kind, rows in held.rows.items():
                    groups = [group_of(o, kind) for o in others]
                    mine = [group_of(held, kind, seen)] if own else []
                    shared = predict([*groups, *mine], rows[rest], SHARED)
                    found[own, f"shared, {kind}"].append(figures(shared, held.seconds[rest]))
                    if own:
                        alone = predict(mine, rows[rest], ALONE)
                        found[own, f"alone, {kind}"].append(figures(alone, held.seconds[rest]))
    print("| own points | model | correlation | among the fast | best of the first 8 |\n|---:|---|---:|---:|---:|")
    for (own, name), rows in sorted(found.items()):
        mean = np.nanmean(np.array(rows), axis=0)
        print(f"| {own} | {name} | {mean[0]:.3f} | {mean[1]:.3f} | {mean[2]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
