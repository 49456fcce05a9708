"""Check a graph: build, run, compare, and say whose fault a failure is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qimeng_tvm.check.worker import Worker
from qimeng_tvm.errors import CheckError
from qimeng_tvm.graph_fuzz.building import DEFAULT, OURS, Ran
from qimeng_tvm.graph_fuzz.evaluate import evaluate
from qimeng_tvm.graph_fuzz.generate import random_graph
from qimeng_tvm.graph_fuzz.graph import Graph, to_model
from qimeng_tvm.graph_fuzz.oracle import Expected, oracle

if TYPE_CHECKING:
    from qimeng_tvm.hardware import Hardware

#: What a worker imports once.
PRELOAD = ("tvm", "onnx", "tvm.relax.frontend.onnx", "qimeng_tvm.graph_fuzz.building", "qimeng_tvm.relax.pipeline")

RIGHT, WRONG, CRASHED, NOT_OURS = "right", "wrong", "crashed", "not ours"


@dataclass(frozen=True)
class Setting:
    """What graphs are built for.

    Attributes
    ----------
    hardware : Hardware
        A machine whose code runs here.
    threads : int
        Cores that the code may use.
    pipeline : str
        ``qimeng`` or ``default``.
    timeout : float
        Seconds for one graph.
    """

    hardware: Hardware
    threads: int = 1
    pipeline: str = OURS
    timeout: float = 60.0


@dataclass(frozen=True, eq=False)
class GraphResult:
    """What came of a graph.

    Attributes
    ----------
    graph : Graph
        The graph.
    kind : str
        ``right``; ``wrong`` (numbers, shapes, or two runs that differ); ``crashed`` (no answer: an error, a signal or a
        hang); ``not ours`` (TVM's front end refuses it, or its own pipeline fails, too).
    message : str
        What is wrong.
    functions : tuple of str
        What the model became, and what scheduled each.
    """

    graph: Graph
    kind: str
    message: str = ""
    functions: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing of ours failed."""
        return self.kind in (RIGHT, NOT_OURS)

    def report(self) -> str:
        """Return what is wrong, with the graph's nodes and the functions that it became."""
        shapes = {name: tuple(array.shape) for name, array in evaluate(self.graph).items()}
        return "\n".join([f"{self.kind}: {self.message}", self.graph.describe(shapes), *self.functions])


def check_graph(worker: Worker, graph: Graph, setting: Setting, blame: bool = True) -> GraphResult:
    """Check a graph in a worker.

    Parameters
    ----------
    worker : Worker
        A crash of it is an answer.
    graph : Graph
        A valid model.
    setting : Setting
        What to build it for.
    blame : bool
        When it fails, ask whether TVM's own pipeline fails, too.

    Raises
    ------
    CheckError
        If ONNX Runtime does not take the graph, or the worker the job.
    """
    expected = oracle(graph)
    ran = _run(worker, graph, expected, setting, setting.pipeline)
    kind, message = _judge(graph, expected, ran)
    if kind in (WRONG, CRASHED) and blame and setting.pipeline == OURS:
        theirs, told = _judge(graph, expected, _run(worker, graph, expected, setting, DEFAULT))
        if theirs != RIGHT:
            kind, message = NOT_OURS, f"TVM's own pipeline: {theirs}: {told}"
    return GraphResult(graph, kind, message, ran.functions)


def check_seed(worker: Worker, seed: int, number: int, setting: Setting) -> GraphResult:
    """Draw graph ``number`` of a seed and check it; the same two numbers give the same graph."""
    return check_graph(worker, random_graph((seed, number)), setting)


def _run(worker: Worker, graph: Graph, expected: Expected, setting: Setting, pipeline: str) -> Ran:
    model = to_model(graph, {name: tuple(array.shape) for name, array in expected.values.items()})
    outcome = worker.call(
        "qimeng_tvm.graph_fuzz.building:build_and_run",
        (model, dict(graph.feeds), pipeline, setting.hardware, setting.threads),
        setting.timeout,
    )
    if outcome.kind == "refused":
        raise CheckError(f"a graph could not be checked: {outcome.message}")
    return outcome.value if outcome.ok else Ran(outcome.kind, outcome.message)


def _judge(graph: Graph, expected: Expected, ran: Ran) -> tuple[str, str]:
    """Return the kind of a result and what is wrong."""
    if ran.kind == "import":
        return NOT_OURS, f"TVM's ONNX front end: {ran.message}"
    if not ran.outputs:
        return CRASHED, f"{ran.kind}: {ran.message}"
    wrong = expected.wrong(dict(zip(graph.outputs, ran.outputs, strict=True)))
    if wrong:
        return WRONG, "; ".join(f"{name} {what}" for name, what in wrong.items())
    return (RIGHT, "") if ran.kind == "ok" else (WRONG, ran.message)
