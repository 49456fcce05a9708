"""What the peers inside TVM share: the plain product, the target, the threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qimeng_tvm.bench.data import Inputs
from qimeng_tvm.request import Request


def use_threads(threads: int) -> None:
    """Set the size of TVM's pool."""
    import tvm  # noqa: PLC0415 - slow to import, and only in the child

    tvm.get_global_func("runtime.config_threadpool")(1, threads)


def host_target(threads: int) -> Any:
    """Return this machine as a TVM target."""
    import tvm  # noqa: PLC0415

    cpu = str(tvm.target.codegen.llvm_get_system_cpu())
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu, "num-cores": threads})


def product_module(request: Request) -> Any:
    """C = A @ B as plain loops, nothing scheduled."""
    import tvm  # noqa: PLC0415
    from tvm import te  # noqa: PLC0415

    lead = (request.batch,) if request.batch > 1 else ()
    a = te.placeholder((*lead, request.m, request.k), request.a_dtype, name="a")
    b = te.placeholder((*lead, request.k, request.n), request.b_dtype, name="b")
    r = te.reduce_axis((0, request.k), name="r")
    to = request.out_dtype

    def element(*index: Any) -> Any:
        *outer, i, j = index
        return te.sum(a[(*outer, i, r)].astype(to) * b[(*outer, r, j)].astype(to), axis=r)

    c = te.compute((*lead, request.m, request.n), element, name="c")
    return tvm.IRModule({"main": te.create_prim_func([a, b, c])})


def bind(
    library: Any, inputs: Inputs, request: Request
) -> tuple[Callable[[], Any], Callable[[Any], np.ndarray[Any, Any]]]:
    """Return the call of a built product on fixed buffers, and how its answer is read."""
    import tvm  # noqa: PLC0415

    a, b = tvm.runtime.tensor(inputs.a), tvm.runtime.tensor(inputs.b)
    c = tvm.runtime.empty((*inputs.a.shape[:-1], request.n), request.out_dtype)
    function = library["main"]
    return (lambda: function(a, b, c)), (lambda _: np.asarray(c.numpy()))
