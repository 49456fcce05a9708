"""How fast an operator is, in turns with the machine's peak and with the libraries that compute the same thing."""

from __future__ import annotations

from collections.abc import Sequence

import tvm

from qimeng_tvm.bench.ceiling import NAME as CEILING
from qimeng_tvm.bench.ceiling import Ceiling
from qimeng_tvm.bench.ours import NAME, tensor_of, variant_of
from qimeng_tvm.bench.run import bench_gemm
from qimeng_tvm.bench.suite import DTYPES, make_case
from qimeng_tvm.bench.systems import CallableSystem, default_peers
from qimeng_tvm.bench.timing import Sample, interleave_calmly, time_calls
from qimeng_tvm.compiler import Compiled
from qimeng_tvm.errors import BuildError
from qimeng_tvm.hardware import Hardware, use_threads
from qimeng_tvm.operators import make_inputs
from qimeng_tvm.request import Request
from qimeng_tvm.result import Peer

#: Libraries that ``run`` compares with (the rest only in ``qimeng bench``, where time is no matter).
RUN_PEERS = ("numpy_openblas", "onednn", "mkl", "onnxruntime")


def measure_beside(
    request: Request, hardware: Hardware, threads: int, compiled: Compiled, peers: Sequence[str]
) -> tuple[Sample, float, tuple[Peer, ...]]:
    """Time the operator in turns with the machine's peak (GFLOP/s) and the libraries that compute the same thing."""
    dtypes = (request.a_dtype, request.b_dtype, request.out_dtype)
    key = next((name for name, known in DTYPES.items() if known == dtypes), None)
    if key is None or request.transpose_a or request.transpose_b or request.epilogue or not peers:
        return *_time_alone(request, hardware, compiled, threads), ()
    case = make_case(request.m, request.n, request.k, batch=request.batch, dtype=key, constant_b=request.constant_b)
    ours = CallableSystem(NAME, lambda _request, inputs, count: variant_of(compiled, inputs, count))
    result = bench_gemm([ours, *default_peers(peers)], [case], (threads,), hardware=hardware)
    row = next(r for r in result.rows if r.system == NAME)
    if row.seconds_median is None or row.seconds_min is None:
        raise BuildError(f"the operator could not be timed: {row.extra.get('note', 'no reason given')}")
    others = tuple(
        Peer(r.system, r.gflops if r.counts else None, r.seconds_median, str(r.extra.get("note", "")))
        for r in result.rows
        if r is not row
    )
    absent = result.versions.get("unavailable", {})
    others += tuple(Peer(name, None, None, str(reason)) for name, reason in dict(absent).items())
    sample = Sample(row.seconds_min, row.seconds_median, row.spread or 0.0, 0, 0)
    return sample, float(row.extra.get("peak_gflops", 0.0)), others


def _time_alone(request: Request, hardware: Hardware, compiled: Compiled, threads: int) -> tuple[Sample, float]:
    """Time the operator when no library computes the same thing in one call."""
    inputs = make_inputs(request, 0)
    arrays = [tensor_of(inputs[name]) for name in ("A", "B", "bias") if name in inputs]
    if compiled.operator.packs:
        room = compiled.pack_parameters[-1]
        packed = tvm.runtime.empty(room.shape, room.dtype)
        compiled["pack_b"](arrays[1], packed)
        arrays[1] = packed
    out = compiled.parameters[-1]
    c = tvm.runtime.empty(out.shape, out.dtype)
    main = compiled["main"]
    ceiling = Ceiling(hardware)
    with use_threads(threads, pin=True):
        ours = {NAME: lambda inner: time_calls(lambda: main(*arrays, c), inner)}
        loops = ceiling.samplers(request.a_dtype, threads)
        floors = ceiling.floors(request.a_dtype, threads)
        samples, _ = interleave_calmly(ours | loops, yardsticks=loops, floors=floors)
    found = samples[NAME]
    if isinstance(found, Exception):
        raise BuildError(f"the operator could not be timed: {found}") from found
    return found, ceiling.gflops(samples.get(CEILING), request.a_dtype, threads)
