"""``qimeng run`` from the line to the folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KEYS = {
    "request",
    "hardware",
    "rule",
    "family",
    "decisions",
    "gflops",
    "pct_of_peak",
    "verified",
    "audited",
    "peers",
    "artifact",
}


def test_json_is_one_object_with_the_promised_keys(gemm):
    _, result = gemm
    assert set(result) >= KEYS
    assert result["verified"] is True and result["audited"] is True
    assert 0 < result["pct_of_peak"] <= 100
    assert result["gflops"] > 0
    assert result["request"]["m"] == 96 and result["request"]["epilogue"] == ["bias", "relu"]
    assert result["rule"].startswith("cpu.gemm@")


def test_the_folder_holds_what_the_json_says(gemm):
    _, result = gemm
    folder = Path(result["artifact"])
    names = {"operator.so", "operator.h", "load.py", "trace.json", "inner_loop.s", "run.json"}
    assert names <= {p.name for p in folder.iterdir()}
    assert json.loads((folder / "run.json").read_text()) == result
    assert "fmadd" in (folder / "inner_loop.s").read_text() or result["hardware"]["isa"] != "x86"
    assert result["intrins"][0] in (folder / "trace.json").read_text()


def test_the_loader_really_runs(gemm, tmp_path):
    _, result = gemm
    folder = tmp_path / "moved"
    shutil.copytree(result["artifact"], folder)
    done = subprocess.run(
        [sys.executable, str(folder / "load.py")], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "(96, 80) float32" in done.stdout


def test_the_header_compiles(gemm, tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on the PATH")
    import tvm_ffi

    include = Path(tvm_ffi.__file__).parent / "include"
    _, result = gemm
    source = tmp_path / "use.c"
    source.write_text(
        '#include "operator.h"\nint main(void) { return __tvm_ffi_main == 0 || __tvm_ffi_pack_b == 0; }\n'
    )
    folders = [str(include), str(include / "dlpack"), result["artifact"]]
    done = subprocess.run(
        [compiler, "-fsyntax-only", *(f"-I{folder}" for folder in folders), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "dlpack/dlpack.h: No such file" in done.stderr:
        pytest.skip("the installed tvm-ffi ships no dlpack header")
    assert done.returncode == 0, done.stderr


def test_tuning_resumes_and_never_measures_twice(qimeng, tmp_path):
    line, db = "u8s8 GEMM 64x64x64", tmp_path / "db"
    first = qimeng("run", line, "--trials", 2, "--database", db, "--out", tmp_path / "a", "--json", "--peers", "none")
    assert first.returncode == 0, first.stderr
    again = qimeng("run", line, "--trials", 2, "--database", db, "--out", tmp_path / "b", "--json", "--peers", "none")
    assert again.returncode == 0, again.stderr
    records = [json.loads(x) for x in (db / "qimeng_records.jsonl").read_text().splitlines()]
    measured = [tuple(sorted(r["decisions"].items())) for r in records if not r.get("verified")]
    assert len(set(measured)) == 2
    assert any(r.get("verified") for r in records)
    assert json.loads(again.stdout)["trials"] == 2


def test_human_output_names_the_verdicts(qimeng, tmp_path):
    done = qimeng("run", "bf16 gemm 40x48x33, zero trials", "--out", tmp_path / "out", "--peers", "none")
    assert done.returncode == 0, done.stderr
    for word in ("request", "hardware", "rule", "decisions", "speed", "verified", "audited", "artifact"):
        assert word in done.stdout, word


BAD = [
    (["run", "conv2d 3x3x3"], 2, "not an operator"),
    (["run", "fp32 gemm 0x4x4"], 2, "M=0"),
    (["run", "fp32 gemm -3x4x4"], 2, "-3"),
    (["run", "fp32 gemm M=3 N=4"], 2, "K is missing"),
    (["run", "fp64 gemm 4x4x4"], 2, "fp64"),
    (["run", "fp32 gemm 400000x400000x400000", "--trials", "0"], 2, "GiB"),
    (["run", "fp32 gemm 4x4x4", "--trials", "-1"], 2, "trials"),
    (["run", "fp32 gemm 4x4x4", "--threads", "4096"], 2, "cores"),
    (["run", "fp32 gemm 4x4x4", "--trials", "0", "--peers", "nobody"], 2, "nobody"),
    (["run", "fp32 gemm 4x4x4 on cray"], 2, "cray"),
    (["run"], 2, "Missing argument"),
    (["frobnicate"], 2, "frobnicate"),
    (["hardware", "pdp11"], 1, "pdp11"),
    (["intrins", "show", "x86.nothing.gemm"], 1, "x86.nothing.gemm"),
    (["bench", "gemm", "--dtype", "f99"], 2, "f99"),
    (["bench", "gemm", "--threads", "0"], 2, "--threads"),
    (["bench", "gemm", "--cases", "no-such-case"], 2, "no-such-case"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "word"), BAD, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_bad_input_is_one_line_and_no_traceback(qimeng, tmp_path, arguments, code, word):
    done = qimeng(*arguments, cwd=tmp_path)
    lines = [x for x in done.stderr.splitlines() if x.startswith("qimeng: ") and not x.startswith("qimeng: warning")]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1 and word in lines[0], done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr


def test_debug_shows_the_traceback(qimeng):
    done = qimeng("run", "fp64 gemm 4x4x4", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr


def test_an_output_folder_that_cannot_be_written(qimeng, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = qimeng("run", "fp32 gemm 8x8x8", "--trials", "0", "--out", blocked / "out")
    assert done.returncode == 1 and "--out" in done.stderr and "Traceback" not in done.stderr


def test_no_linker(qimeng, tmp_path):
    done = qimeng(
        "run", "fp32 gemm 8x8x8", "--trials", "0", "--out", tmp_path / "o", "--peers", "none", PATH=str(tmp_path)
    )
    assert done.returncode == 1
    assert "install one of g++" in done.stderr and "Traceback" not in done.stderr


def test_a_database_of_another_version(qimeng, tmp_path):
    db = tmp_path / "db"
    db.mkdir()
    (db / "qimeng_records.jsonl").write_text('{"schema": 99}\n')
    done = qimeng("run", "fp32 gemm 8x8x8", "--trials", "1", "--database", db, "--out", tmp_path / "o")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "version" in done.stderr


def test_hardware_and_intrins_json(qimeng):
    hardware = json.loads(qimeng("hardware", "zen5", "--json").stdout)
    assert hardware["isa"] == "x86" and "avx512bf16" in hardware["features"]
    families = json.loads(qimeng("intrins", "list", "--json").stdout)
    assert {"x86.avx2_f32.gemm", "x86.avx512_f32.gemm"} <= {f["key"] for f in families}
    shown = qimeng("intrins", "show", "qimeng.x86.avx2_f32.gemm.4x2x64x2x0x1x0@3").stdout
    assert "def gemm(" in shown and "llvm.fma" in shown
    refused = qimeng("intrins", "show", "qimeng.x86.avx2_f32.gemm.4x2x64x2x0x1@1")
    assert refused.returncode == 1 and "tune again" in refused.stderr and "Traceback" not in refused.stderr
