"""Make the files of a case: the module, its export for TVM, its ONNX file, inputs, and the right results."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_tvm.bench.models.case import (
    ABOUT,
    DTYPES,
    EXPECTED,
    INPUTS,
    MODULE,
    NARROW,
    ONNX,
    PLAIN,
    PROGRAM,
    ModelCase,
    about,
    load_files,
)
from qimeng_tvm.bench.models.quantize import meaning, write_quantized
from qimeng_tvm.bench.models.zoo import model_named
from qimeng_tvm.errors import ModelError, last_line

_SEED = 0
#: Parameters up to which the right results are computed in float64.
_WIDE = 600_000_000
#: Inputs that statistics are taken of; the weights are the same for every batch.
_TYPICAL = 8
#: Calls with such inputs that the limits of a quantized model's values come from.
_CALLS = 4
_FORMATS = {"program": PROGRAM, "onnx": ONNX}


def ensure(case: ModelCase) -> Path:
    """Return the folder with a case's files; they are made, in a process of their own, where they are not there.

    Raises
    ------
    ModelError
        If they cannot be made.
    """
    if (case.folder / ABOUT).exists():
        return case.folder
    command = "from qimeng_tvm.bench.models.export import main; main()"
    arguments = [case.model, str(case.cache), str(case.batch), case.dtype, str(case.layers or 0)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ModelError(f"{case.name} cannot be made: {lines[-1][:300]}")
    return case.folder


def main() -> None:
    """Make the files of the case that the arguments name."""
    model, cache, batch, dtype, layers = sys.argv[1:]
    make(ModelCase(model, int(batch), dtype, int(layers) or None, Path(cache)))


def make(case: ModelCase) -> None:
    """Make the files of a case; its folder appears in one step."""
    case.cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=case.cache, prefix=".making-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (_fill_quantized if case.dtype == "int8" else _fill)(folder, case)
        shutil.rmtree(case.folder, ignore_errors=True)
        folder.rename(case.folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _fill(folder: Path, case: ModelCase) -> None:
    import torch  # noqa: PLC0415 (an extra)

    from qimeng_tvm.bench.models.weights import checking, enliven, shape_of  # noqa: PLC0415 (as above)

    torch.manual_seed(_SEED)
    known = model_named(case.model)
    module = known.build(case.layers)
    enliven(module, known.inputs(module, _TYPICAL))
    inputs = known.inputs(module, case.batch)
    dtype = getattr(torch, DTYPES[case.dtype])
    module = module.to(dtype)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    torch.save(module, folder / MODULE)
    failures = {
        name: told
        for name, write in (("program", _write_program), ("onnx", _write_onnx))
        if (told := _attempt(write, torch, module, inputs, folder / _FORMATS[name]))
    }
    parameters = sum(p.numel() for p in module.parameters())
    with torch.inference_mode():
        flops = _flops(torch, module, inputs)
        wide = torch.float64 if parameters <= _WIDE else torch.float32
        precise, arguments = _as(wide, module, inputs)
        with checking(precise):
            results = _tuple(precise(*arguments))
        exact = tuple(r.numpy() for r in results)
        narrow = tuple(r.float().numpy() for r in _tuple(module(*inputs))) if case.dtype in NARROW else ()
    shape = shape_of(module)
    np.savez(folder / INPUTS, *(_array(torch, x) for x in inputs))
    np.savez(folder / EXPECTED, *(narrow or exact))
    if narrow:
        np.savez(folder / PLAIN, *exact)
    facts = {
        "model": case.model,
        "batch": case.batch,
        "dtype": case.dtype,
        "layers": case.layers,
        "images": known.images,
        "parameters": parameters,
        "flops": flops,
        "depth": shape.depth,
        "terms": shape.terms,
        "results": len(results),
        "failures": failures,
        "torch": torch.__version__,
    }
    (folder / ABOUT).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _fill_quantized(folder: Path, case: ModelCase) -> None:
    """Quantize the ONNX file of the same model in float32, and compare with its results."""
    import torch  # noqa: PLC0415 (an extra)

    plain = ensure(replace(case, dtype="f32"))
    known, told = model_named(case.model), about(plain)["failures"].get("onnx")
    if told:
        raise ModelError(f"there is no ONNX file to quantize: {told}")
    module = torch.load(plain / MODULE, weights_only=False)  # pickled by this program itself
    torch.manual_seed(_SEED + 1)
    samples = [[_array(torch, x) for x in known.inputs(module, case.batch)] for _ in range(_CALLS)]
    del module
    write_quantized(plain / ONNX, folder / ONNX, samples, known.images)
    np.savez(folder / EXPECTED, *meaning(folder / ONNX, load_files(plain).inputs))
    shutil.copyfile(plain / EXPECTED, folder / PLAIN)
    shutil.copyfile(plain / INPUTS, folder / INPUTS)
    facts = {**about(plain), "dtype": case.dtype, "failures": {}}
    (folder / ABOUT).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def _attempt(write: Any, torch: Any, module: Any, inputs: tuple[Any, ...], path: Path) -> str:
    """Return why a file could not be written; empty when it was."""
    try:
        with torch.no_grad():
            write(torch, module, inputs, path)
    except Exception as error:  # an exporter may fail in any way; then the systems that need the file say so
        path.unlink(missing_ok=True)
        return last_line(error)
    return ""


def _write_program(torch: Any, module: Any, inputs: tuple[Any, ...], path: Path) -> None:
    torch.export.save(torch.export.export(module, inputs), path)


def _write_onnx(torch: Any, module: Any, inputs: tuple[Any, ...], path: Path) -> None:
    """Write weights of 32 bits, whatever the case's are: who reads the file has a setting for less."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    single, arguments = _as(torch.float32, module, inputs)
    program = torch.export.export(single, arguments)
    torch.onnx.export(program, (), path, dynamo=True, optimize=True, external_data=True, verbose=False)


def _as(dtype: Any, module: Any, inputs: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Return module and inputs in another floating-point type; the module itself stays as it is."""
    same = all(p.dtype == dtype for p in module.parameters())
    other = module if same else copy.deepcopy(module).to(dtype)
    return other, tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def _flops(torch: Any, module: Any, inputs: tuple[Any, ...]) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 (as above)

    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops())


def _array(torch: Any, tensor: Any) -> np.ndarray[Any, Any]:
    if tensor.dtype == torch.bfloat16:  # NumPy's files have no such type
        return np.asarray(tensor.contiguous().view(torch.uint16).numpy())
    return np.asarray(tensor.numpy())
