"""A machine that is busy with other things makes times uncertain, and nothing else."""

from qimeng_tvm import api
from qimeng_tvm.bench.timing import Sample


def test_times_that_differ_without_bounds_are_no_error(monkeypatch, tmp_path):
    seconds = 2e-6  # 16.4 GFLOP/s
    monkeypatch.setattr(api, "measure_beside", lambda *_: (Sample(seconds, seconds, 3.0, 0, 0), 12.0, ()))
    result = api.run("f32 gemm 16x32x32, zero trials", out=tmp_path / "operator", database=tmp_path / "records")
    assert result.verified and result.gflops > result.peak_gflops
    # Beyond that much of the peak it is a measuring error all the same.
    monkeypatch.setattr(api, "measure_beside", lambda *_: (Sample(seconds, seconds, 3.0, 0, 0), 8.0, ()))
    result = api.run("f32 gemm 16x32x32, zero trials", out=tmp_path / "operator", database=tmp_path / "records")
    assert "measuring error" in result.timing.message
