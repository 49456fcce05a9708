"""IREE, from the ONNX file; as it comes, and with data tiling."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_tvm.bench.model_peers.base import ModelPeer, exported, results_of
from qimeng_tvm.bench.models.case import ONNX, Files, ModelCase
from qimeng_tvm.bench.systems import BenchError, Offer, Refusal, Variant

_WAYS = {"as it comes": (), "data tiling": ("--iree-opt-data-tiling", "--iree-llvmcpu-enable-ukernels=all")}
_COMMON = (
    "--iree-hal-target-backends=llvm-cpu",
    "--iree-llvmcpu-target-cpu=host",
    "--iree-llvmcpu-stack-allocation-limit=262144",  # the default refuses attention
    "--iree-opt-level=O3",
)


@dataclass(frozen=True)
class Iree(ModelPeer):
    """What of the two ways compiles; the faster one counts."""

    name: str = "iree"
    packages: tuple[str, ...] = ("iree.compiler", "iree.runtime", "onnx")

    def prepare(self, request: ModelCase, inputs: Files, threads: int) -> Offer:
        """See :class:`Peer`."""
        from iree import runtime  # noqa: PLC0415 (an extra)

        if request.dtype == "bf16":
            return Refusal("it has no setting for less than float32")
        path = exported(inputs, "onnx", ONNX)
        runtime.flags.parse_flags(f"--task_topology_group_count={threads}")
        offer: list[Variant] = []
        failures: list[str] = []
        with tempfile.TemporaryDirectory() as scratch:
            imported = Path(scratch) / "model.mlir"
            _run([*_tool("import_onnx"), str(path), "-o", str(imported)])
            for label, flags in _WAYS.items():
                binary = Path(scratch) / f"{len(offer)}.vmfb"
                try:
                    _compile(imported, binary, flags)
                except BenchError as error:  # one way may fail where the other does not
                    failures.append(f"{label}: {error}")
                    continue
                offer.append(_variant(runtime, binary.read_bytes(), inputs, label))
        if not offer:
            raise BenchError("; ".join(failures))
        return offer


def _compile(source: Path, binary: Path, flags: tuple[str, ...]) -> None:
    _run([*_tool("scripts.iree_compile"), str(source), "-o", str(binary), *_COMMON, *flags])


def _tool(name: str) -> list[str]:
    return [sys.executable, "-m", f"iree.compiler.tools.{name}"]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or [done.stderr.strip()[-200:]]
        raise BenchError(f"{Path(command[2]).name} failed: {lines[0][:200]}")


def _variant(runtime: Any, binary: bytes, files: Files, label: str) -> Variant:
    config = runtime.Config("local-task")
    context = runtime.SystemContext(config=config)
    context.add_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, binary))
    module = context.modules.module
    (name,) = [n for n in module.vm_module.function_names if not n.startswith("__") and not n.endswith("$async")]
    function = module[name]
    arguments = [runtime.asdevicearray(config.device, array) for array in files.plain]
    return Variant(lambda: function(*arguments), results_of(lambda r: np.asarray(r.to_host())), label=label)
