"""ONNX operators on quantized tensors as what they stand for: DequantizeLinear, the operator, QuantizeLinear.

That is the form which TVM's front end reads and integer micro-kernels are found for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from qimeng_tvm.errors import ModelError

#: Operators on integers that nothing reads, under any domain.
_UNREAD = ("ConvInteger", "QAttention", "QEmbedLayerNormalization", "QGemm", "DynamicQuantizeLSTM")
_LINEAR = "QLinear"


class _Rewriter:
    """Takes one graph's nodes apart."""

    def __init__(self, graph: Any, helper: Any, numpy_helper: Any) -> None:
        self._graph, self._helper, self._arrays = graph, helper, numpy_helper
        self._constants = {x.name: x for x in graph.initializer}
        self._nodes: list[Any] = []
        self._made = 0

    def run(self) -> None:
        """Put what takes their place where the nodes were."""
        for node in list(self._graph.node):
            how = _HOW.get(node.op_type)
            if how is None:
                self._nodes.append(node)
            else:
                how(self, node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def matmul(self, node: Any) -> None:
        """``QLinearMatMul``: columns of the right operand may have a scale each."""
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.input
        operands = [self._real(a, a_scale, a_zero), self._real(b, b_scale, b_zero, axis=1)]
        self._quantize(self._node("MatMul", operands), y_scale, y_zero, node.output[0])

    def convolution(self, node: Any) -> None:
        """``QLinearConv``: filters may have a scale each; its bias is of the scale of the sums."""
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = node.input
        operands = [self._real(x, x_scale, x_zero), self._real(w, w_scale, w_zero, axis=0)]
        if bias and bias[0]:
            sums, scales = self._value(bias[0], node), self._value(x_scale, node) * self._value(w_scale, node)
            operands.append(self._constant((sums * scales.reshape(-1)).astype("float32")))
        attributes = {a.name: self._helper.get_attribute_value(a) for a in node.attribute}
        self._quantize(self._node("Conv", operands, **attributes), y_scale, y_zero, node.output[0])

    def _real(self, value: str, scale: str, zero: str, axis: int | None = None) -> str:
        """Dequantize; of one scale, whose tensor may have an axis, without an axis."""
        dims = tuple(self._constants[scale].dims) if scale in self._constants else ()
        if dims not in ((), (1,)):
            return self._node("DequantizeLinear", [value, scale, zero], axis=axis)
        single = [self._scalar(name) for name in (scale, zero)]
        return self._node("DequantizeLinear", [value, *single])

    def _scalar(self, name: str) -> str:
        if name not in self._constants or not self._constants[name].dims:
            return name
        return self._constant(self._arrays.to_array(self._constants[name]).reshape(()))

    def _quantize(self, value: str, scale: str, zero: str, name: str) -> None:
        self._nodes.append(self._helper.make_node("QuantizeLinear", [value, scale, zero], [name]))

    def _node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        name = self._name()
        self._nodes.append(self._helper.make_node(operator, inputs, [name], **attributes))
        return name

    def _constant(self, value: np.ndarray[Any, Any]) -> str:
        name = self._name()
        self._graph.initializer.append(self._arrays.from_array(value, name))
        return name

    def _name(self) -> str:
        self._made += 1
        return f"qimeng_qlinear_{self._made}"

    def _value(self, name: str, node: Any) -> np.ndarray[Any, Any]:
        if name not in self._constants:
            raise ModelError(f"{node.op_type} {node.name!r} has no constant {name!r}: {_ADVICE}")
        value: np.ndarray[Any, Any] = self._arrays.to_array(self._constants[name])
        return value


_HOW: Mapping[str, Callable[[_Rewriter, Any], None]] = MappingProxyType(
    {"QLinearConv": _Rewriter.convolution, "QLinearMatMul": _Rewriter.matmul}
)
_ADVICE = "quantize the model in the format of QuantizeLinear and DequantizeLinear nodes (QDQ), which is read"


def as_qdq(model: Any) -> Any:
    """Return an ONNX model without ``QLinearConv`` and ``QLinearMatMul``; itself where it has none.

    Parameters
    ----------
    model : onnx.ModelProto
        Stays as it is.

    Raises
    ------
    ModelError
        If it has another quantized operator, which nothing reads: named, with what to do.
    """
    from onnx import helper, numpy_helper  # noqa: PLC0415 (whoever has a model has the package)

    found = {node.op_type for node in model.graph.node}
    unread = sorted(x for x in found if x in _UNREAD or (x.startswith(_LINEAR) and x not in _HOW))
    if unread:
        raise ModelError(f"{', '.join(unread)}: such operators of a quantized model are not read; {_ADVICE}")
    if not found & set(_HOW):
        return model
    copied = type(model)()
    copied.CopyFrom(model)
    _Rewriter(copied.graph, helper, numpy_helper).run()
    return copied
