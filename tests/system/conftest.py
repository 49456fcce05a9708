"""Run the command as a user does: another process, another folder."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def qimeng(tmp_path_factory):
    """Call ``qimeng`` with arguments; returns the finished process. Records and caches go to a temporary home."""
    home = tmp_path_factory.mktemp("home")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("QIMENG", "OPENAI", "TVM_"))}
    env |= {"XDG_DATA_HOME": str(home / "data"), "COLUMNS": "200"}

    def call(*arguments, cwd=None, timeout=280, **more):
        return subprocess.run(
            [sys.executable, "-m", "qimeng_tvm.cli", *map(str, arguments)],
            cwd=cwd or home, env=env | more, timeout=timeout, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call


@pytest.fixture(scope="session")
def gemm(qimeng, tmp_path_factory):
    """One finished run, as (process, parsed JSON)."""
    out = tmp_path_factory.mktemp("gemm")
    done = qimeng("run", "fp32 GEMM 96x80x64 with weights with bias and relu", "--trials", "0", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    return done, json.loads(done.stdout)
