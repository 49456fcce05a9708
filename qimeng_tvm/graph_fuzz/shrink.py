"""Make a failing graph small: whatever can go while it still fails, goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from qimeng_tvm.errors import CheckError
from qimeng_tvm.graph_fuzz.evaluate import evaluate
from qimeng_tvm.graph_fuzz.graph import Array, Graph, float_dtype

#: Whether a graph still fails in the way that is looked for.
Fails = Callable[[Graph], bool]


def shrink(graph: Graph, fails: Fails, tries: int = 200) -> Graph:
    """Return a smaller graph that fails, too.

    Parameters
    ----------
    graph : Graph
        One that fails.
    fails : callable
        Asked of every smaller graph; one that it cannot check (``CheckError``) is not taken.
    tries : int
        How often it is asked at most.
    """
    left = tries
    improved = True
    while improved and left > 0:
        improved = False
        for smaller in _smaller(graph):
            if left <= 0:
                break
            left -= 1
            if _holds(fails, smaller):
                graph, improved = smaller, True
                break
    return graph


def _holds(fails: Fails, graph: Graph) -> bool:
    try:
        return fails(graph)
    except CheckError:
        return False


def _smaller(graph: Graph) -> Iterator[Graph]:
    """Yield graphs with less in them, the smallest first."""
    values = evaluate(graph)
    made = [name for node in graph.nodes for name in node.outputs]
    inner = [name for name in made if name not in graph.outputs]
    if len(graph.outputs) > 1:
        for name in graph.outputs:
            yield replace(graph, outputs=(name,)).used()
    for name in inner:  # the first nodes' results end the graph earliest
        yield replace(graph, outputs=(name,)).used()
    for name in reversed(inner):
        yield _given(graph, name, values[name])
    for node in graph.nodes:
        for operand in node.inputs:
            if operand and len(node.outputs) == 1 and values[operand].shape == values[node.outputs[0]].shape:
                yield from _without(graph, node.outputs[0], operand)


def _given(graph: Graph, name: str, array: Array) -> Graph:
    """Return the graph with a value as an input instead of what made it."""
    dtype = float_dtype(graph) if array.dtype.kind == "f" else array.dtype
    nodes = tuple(node for node in graph.nodes if name not in node.outputs or len(node.outputs) > 1)
    # A node of several outputs stays for the others, and what it would make is no longer read.
    nodes = tuple(
        replace(node, outputs=tuple(f"{x}_unread" if x == name else x for x in node.outputs)) for node in nodes
    )
    return replace(graph, nodes=nodes, feeds={**graph.feeds, name: array.astype(dtype)}).used()


def _without(graph: Graph, name: str, operand: str) -> Iterator[Graph]:
    """Yield the graph without the node that makes a value: what read it reads one of that node's operands."""
    if name in graph.outputs and operand not in graph.made:
        return  # nothing would be left of that output
    nodes = tuple(
        replace(node, inputs=tuple(operand if x == name else x for x in node.inputs))
        for node in graph.nodes
        if name not in node.outputs
    )
    outputs = tuple(dict.fromkeys(operand if x == name else x for x in graph.outputs))
    yield replace(graph, nodes=nodes, outputs=outputs).used()
