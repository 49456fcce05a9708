"""TVM's own build with the pipeline "qimeng": a module written by hand, its weight packed once.

Run: python examples/relax_build.py
"""

import math

import numpy as np
import tvm
from tvm import relax
from tvm.script import relax as R

import qimeng_tvm
from qimeng_tvm.hardware import configure_threads, host, target_of

rng = np.random.default_rng(0)
weight = rng.standard_normal((256, 512), dtype=np.float32)
x = rng.standard_normal((64, 256), dtype=np.float32)

builder = relax.BlockBuilder()
data = relax.Var("x", R.Tensor((64, 256), "float32"))
with builder.function("main", [data]):
    with builder.dataflow():
        out = builder.emit_output(relax.op.nn.gelu(relax.op.matmul(data, relax.const(weight))))
    builder.emit_func_output(out)

target = target_of(host(), 1)  # this machine, all of its instructions, one core
configure_threads(1)

# By name, relax.build(module, target, relax_pipeline="qimeng"); or as an object, which keeps a report.
pipeline = qimeng_tvm.pipeline(threads=1)
executable = relax.build(builder.finalize(), target, relax_pipeline=pipeline)
result = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()

assert pipeline.report is not None
for function in pipeline.report.functions:
    print(f"{function.name}: {function.operator}, {function.rule or function.why}, {function.family}")
print(f"{pipeline.report.tensorized:.0%} of the contractions' operations are tensorized")

product = x.astype(np.float64) @ weight
erf = np.vectorize(math.erf)
np.testing.assert_allclose(result, 0.5 * product * (1 + erf(product / np.sqrt(2))), rtol=1e-4, atol=1e-3)
print("right")
