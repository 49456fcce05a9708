"""Every peer that is here gives the right answer on small cases, or says why not; no timing is asserted."""

from __future__ import annotations

import pytest

from qimeng_tvm.bench import data, timing
from qimeng_tvm.bench.host import RemoteHost
from qimeng_tvm.bench.suite import make_case
from qimeng_tvm.bench.systems import Refusal, default_peers

CASES = [
    make_case(24, 40, 56),
    make_case(24, 40, 56, constant_b=True),
    make_case(8, 24, 16, batch=3),
    make_case(24, 40, 56, dtype="bf16"),
    make_case(24, 40, 56, dtype="bf16", constant_b=True),
    make_case(8, 24, 16, batch=3, dtype="bf16"),
    make_case(24, 40, 56, dtype="u8s8"),
    make_case(24, 40, 56, dtype="u8s8", constant_b=True),
    make_case(8, 24, 16, batch=3, dtype="u8s8"),
]
# oneDNN and FBGEMM multiply u8 by s8 with vpmaddubsw where there is no VNNI; it saturates, and that is theirs.
SATURATES = {("onednn", "u8s8")}
DOES = {
    "numpy_openblas": {"f32"},
    "openblas_best": {"f32"},
    "onednn": {"f32", "u8s8"},  # bf16 only where the CPU has what oneDNN wants
    "mkl": {"f32", "bf16"},
    "blis": {"f32"},
    "onnxruntime": {"f32", "u8s8"},
    "tvm_default": {"f32", "bf16", "u8s8"},
}


@pytest.mark.parametrize("peer", default_peers(), ids=lambda p: p.name)
def test_peer_is_right(peer, tmp_path):
    reason = peer.available()
    if reason is not None:
        pytest.skip(reason)
    host = RemoteHost(peer)
    core = timing.allowed_cores()[:1]
    try:
        for case in CASES:
            inputs = data.make_inputs(case.request())
            data.save(tmp_path, inputs, data.reference(inputs))
            opened = host.open(case.request(1), tmp_path, 1, core)
            if isinstance(opened, Refusal):
                assert opened.reason
                assert case.dtype not in DOES[peer.name], f"{case}: {opened.reason}"
                continue
            if (peer.name, case.dtype) not in SATURATES:
                assert not opened.wrong, f"{case}: {opened}"
            assert host.sample(2) > 0
            host.close_case()
    finally:
        host.shutdown()


@pytest.mark.parametrize("name", ["numpy_openblas", "onednn", "mkl", "onnxruntime", "tvm_default"])
def test_peer_takes_two_threads(name, tmp_path):
    cores = timing.allowed_cores()[:2]
    if len(cores) < 2:
        pytest.skip("needs two cores")
    (peer,) = default_peers([name])
    if (reason := peer.available()) is not None:
        pytest.skip(reason)
    case = make_case(64, 64, 64)
    inputs = data.make_inputs(case.request())
    data.save(tmp_path, inputs, data.reference(inputs))
    host = RemoteHost(peer)
    try:
        opened = host.open(case.request(2), tmp_path, 2, cores)
        assert not isinstance(opened, Refusal), opened
        assert not opened.wrong
        assert host.sample(1) > 0
    finally:
        host.shutdown()
