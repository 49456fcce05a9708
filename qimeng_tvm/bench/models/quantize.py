"""Quantized ONNX files: activations of unsigned bytes, weights of signed ones, scales from typical inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: What has weights, and chooses among its operands: on bytes in every model.
_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MaxPool")
#: What is on bytes between the convolutions of a model of images; elsewhere it is part of a norm or an activation.
_BETWEEN = ("Add", "Clip", "Concat", "Relu")
_OPTIONS: Mapping[str, Any] = {
    "ActivationSymmetric": False,
    "WeightSymmetric": True,
    # What comes after a product is bias, norm, softmax or the model's result, none of which is on bytes.
    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
}


def write_quantized(source: Path, target: Path, samples: Sequence[Sequence[Array]], images: bool) -> None:
    """Quantize a model statically, the extremes of ``samples`` as limits; quantizations are nodes of their own.

    Parameters
    ----------
    source, target : Path
        The ONNX file in float32, and the one to write.
    samples : sequence of sequence of ndarray
        Typical inputs.
    images : bool
        The model is made of convolutions.
    """
    from onnxruntime import quantization  # noqa: PLC0415 (an extra)
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415 (as above)

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(
            source,
            prepared,
            skip_symbolic_shape=True,  # no size is open
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            external_data_location="prepared.data",
        )
        quantization.quantize_static(
            prepared,
            target,
            _reader(quantization.CalibrationDataReader, _named(source, samples)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=[*_OPERATORS, *(_BETWEEN if images else ())],
            nodes_to_exclude=_without_weights(prepared),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            use_external_data_format=True,
            extra_options=dict(_OPTIONS),
        )


def _without_weights(path: Path) -> list[str]:
    """Return the products of two activations, those of attention: they stay in float32."""
    import onnx  # noqa: PLC0415 (as above)

    graph = onnx.load(str(path), load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    return [n.name for n in graph.node if n.op_type == "MatMul" and constant.isdisjoint(n.input)]


def _named(source: Path, samples: Sequence[Sequence[Array]]) -> Iterator[dict[str, Array]]:
    import onnx  # noqa: PLC0415 (as above)

    names = [slot.name for slot in onnx.load(str(source), load_external_data=False).graph.input]
    return (dict(zip(names, sample, strict=True)) for sample in samples)


def _reader(base: Any, samples: Iterator[dict[str, Array]]) -> Any:
    """Return what calibration asks for its inputs, until it is told None."""

    class Reader(base):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            return next(samples, None)

    return Reader()


def meaning(path: Path, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """Return what an ONNX file computes node by node as it is written: quantized values, arithmetic in float32."""
    import onnxruntime as ort  # noqa: PLC0415 (as above)

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [slot.name for slot in session.get_inputs()]
    return tuple(session.run(None, dict(zip(names, inputs, strict=True))))
