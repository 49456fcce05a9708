"""``torch.compile(model, backend="qimeng")``: graphs that PyTorch captures, compiled for inference on this machine.

A graph is compiled when it first runs, for the shapes and weights that it runs with: weights become constants. Other
shapes, or weights that have changed, are compiled again. What cannot be compiled runs eagerly, after one warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from qimeng_tvm.compiled_model import CompiledModel, compile_module
from qimeng_tvm.errors import ModelError, QimengError
from qimeng_tvm.relax.pipeline import Pipeline
from qimeng_tvm.relax.sources import export, from_program, written

#: Shapes and states of the weights that one graph is compiled for; further ones run eagerly.
MOST = 8

Key = tuple[Any, ...]


def backend(
    graph: torch.fx.GraphModule, examples: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Return what runs a captured graph: the entry point ``qimeng`` of ``torch.compile``'s backends.

    Parameters
    ----------
    graph : torch.fx.GraphModule
        What was captured.
    examples : sequence
        What it is going to be called with.
    options : mapping, optional
        ``torch.compile(..., options={"threads": 2, "trials": 64})``: those of :class:`qimeng_tvm.Pipeline`.
    """
    del examples  # it is compiled for what it really runs with
    return _Graph(graph, Pipeline(**(options or {})))


class _Graph:
    """A captured graph, compiled for what it is called with."""

    def __init__(self, graph: torch.fx.GraphModule, passes: Pipeline) -> None:
        self.graph, self.passes = graph, passes
        self.weights = [_is_weight(node) for node in graph.graph.nodes if node.op == "placeholder"]
        self.compiled: dict[Key, tuple[CompiledModel, list[Any]]] = {}
        self.eager = False
        self.told: set[str] = set()

    def __call__(self, *arguments: Any) -> Any:
        if self.eager or self._needs_gradients(arguments):
            return self.graph(*arguments)
        key = tuple(map(_key, arguments, self.weights))
        found = self.compiled.get(key)
        if found is None:
            if len(self.compiled) >= MOST:
                return self._go_eager(f"it ran with {MOST} different shapes or states of its weights", arguments)
            try:
                # The arguments are kept: a weight's address is part of the key.
                found = self.compiled[key] = (self._compile(arguments), list(arguments))
            except QimengError as error:
                return self._go_eager(str(error), arguments)
        outputs = found[0](*(x for x, weight in zip(arguments, self.weights, strict=True) if _is_input(x, weight)))
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _compile(self, arguments: Sequence[Any]) -> CompiledModel:
        inputs = [x for x, weight in zip(arguments, self.weights, strict=True) if _is_input(x, weight)]
        odd = next((x for x in arguments if isinstance(x, torch.Tensor) and x.device.type != "cpu"), None)
        if odd is not None or not inputs:
            raise ModelError("it has no inputs" if odd is None else f"its tensors are on {odd.device}")
        program = export(_Bound(self.graph, arguments, self.weights), inputs).run_decompositions()
        if written(program):
            raise ModelError(f"it writes into {', '.join(written(program)[:3])}")
        if not all(isinstance(x, torch.export.graph_signature.TensorArgument) for x in _outputs(program)):
            raise ModelError("it returns something other than tensors")
        return compile_module(from_program(program), self.passes)

    def _needs_gradients(self, arguments: Sequence[Any]) -> bool:
        if not torch.is_grad_enabled() or not any(getattr(x, "requires_grad", False) for x in arguments):
            return False
        self._warn("gradients are asked for, and it compiles for inference only: call the model in torch.no_grad()")
        return True

    def _go_eager(self, reason: str, arguments: Sequence[Any]) -> Any:
        self._warn(reason)
        self.eager = True
        self.compiled.clear()
        return self.graph(*arguments)

    def _warn(self, reason: str) -> None:
        if reason in self.told:
            return
        self.told.add(reason)
        warnings.warn(f"qimeng runs a graph eagerly: {reason}", RuntimeWarning, stacklevel=4)


class _Bound(torch.nn.Module):
    """A captured graph whose weights, and whose arguments that are not tensors, are its own."""

    def __init__(self, graph: torch.fx.GraphModule, arguments: Sequence[Any], weights: Sequence[bool]) -> None:
        super().__init__()
        self.graph = graph
        self.slots: list[Any] = []
        for index, (value, weight) in enumerate(zip(arguments, weights, strict=True)):
            if _is_input(value, weight):
                self.slots.append(_HOLE)
            elif isinstance(value, torch.Tensor):
                self.register_buffer(f"weight_{index}", value.detach())
                self.slots.append(f"weight_{index}")
            else:
                self.slots.append((value,))

    def forward(self, *inputs: torch.Tensor) -> Any:
        given = iter(inputs)
        return self.graph(*(self._fill(slot, given) for slot in self.slots))

    def _fill(self, slot: Any, given: Any) -> Any:
        if slot is _HOLE:
            return next(given)
        return getattr(self, slot) if isinstance(slot, str) else slot[0]


_HOLE = object()


def _is_input(value: Any, weight: bool) -> bool:
    return isinstance(value, torch.Tensor) and not weight


def _is_weight(node: torch.fx.Node) -> bool:
    """Tell whether a placeholder is a parameter or buffer of a module: PyTorch passes these as inputs, too."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    return source is not None and "NN_MODULE" in source.guard_source.name


def _key(value: Any, weight: bool) -> Any:
    """Return what tells values apart that need code of their own."""
    if not isinstance(value, torch.Tensor):
        return value
    if weight:
        # Tensors made in inference mode do not count their versions, and cannot be written to outside of it.
        return value.data_ptr(), None if value.is_inference() else value._version
    return tuple(value.shape), value.dtype


def _outputs(program: Any) -> list[Any]:
    return [spec.arg for spec in program.graph_signature.output_specs]
