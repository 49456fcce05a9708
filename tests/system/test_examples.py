"""The examples run as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
NEEDS = {"torch_resnet.py": "torch", "onnx_model.py": "onnx"}


@pytest.mark.parametrize("name", sorted(p.name for p in FOLDER.glob("*.py")))
def test_it_runs(name, tmp_path, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} needs the package {NEEDS[name]}")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    arguments = [str(tmp_path)] if name in NEEDS else []
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "right" in done.stdout
