"""Our convolution: one operator through the pipeline of whole models, channels innermost, filters constant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_tvm.bench.conv_data import ConvInputs
from qimeng_tvm.bench.conv_peers import ConvPeer
from qimeng_tvm.bench.conv_suite import ConvCase
from qimeng_tvm.bench.systems import Offer, Variant


@dataclass(frozen=True)
class QimengConv(ConvPeer):
    """With trials it is tuned beforehand; without, decisions are analytic."""

    name: str = "qimeng"
    prepare_seconds: float = 3600.0
    trials: int = 0
    database: Path | None = None

    def prepare(self, request: ConvCase, inputs: ConvInputs, threads: int) -> Offer:
        """See :class:`Peer`."""
        import tvm  # noqa: PLC0415 (slow to import, and only in the child)
        from tvm import relax  # noqa: PLC0415 (as above)

        from qimeng_tvm.hardware import configure_threads, host, target_of  # noqa: PLC0415 (as above)

        passes = relax.get_pipeline("qimeng", threads=threads, trials=self.trials, database=self.database)
        executable = relax.build(module_of(request, inputs.w), target_of(host(), threads), relax_pipeline=passes)
        configure_threads(threads)
        function = relax.VirtualMachine(executable, tvm.cpu())["main"]
        pixels = tvm.runtime.tensor(np.ascontiguousarray(inputs.x.transpose(0, 2, 3, 1)))
        (report, *_) = [f for f in passes.report.functions if f.contraction] or passes.report.functions
        extra = {"decisions": dict(report.decisions), "source": report.source, "rule": report.rule}
        return Variant(
            lambda: function(pixels),
            lambda result: np.asarray(result.numpy()).transpose(0, 3, 1, 2),
            note=report.why,
            extra=extra,
        )


def module_of(case: ConvCase, filters: np.ndarray[Any, Any]) -> Any:
    """Return the operator as a Relax module: NHWC pixels are its argument, HWIO filters a constant."""
    from tvm import relax  # noqa: PLC0415 (as above)

    pixels = relax.Var("pixels", relax.TensorType((case.n, case.h, case.w, case.c), case.a_dtype))
    weight = relax.const(np.ascontiguousarray(filters.transpose(2, 3, 1, 0)), case.a_dtype)
    builder = relax.BlockBuilder()
    with builder.function("main", [pixels]):
        with builder.dataflow():
            result = builder.emit_output(
                relax.op.nn.conv2d(
                    pixels, weight, strides=case.stride, padding=case.pad, groups=case.groups,
                    data_layout="NHWC", kernel_layout="HWIO",
                )
            )  # fmt: skip
        builder.emit_func_output(result)
    return builder.get()
