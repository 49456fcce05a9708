"""From a task and its decisions to machine code and a folder that others can use."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any

import tvm

from qimeng_tvm.errors import BuildError
from qimeng_tvm.hardware import Hardware, host, target_of
from qimeng_tvm.intrin import names_in
from qimeng_tvm.lowering import build
from qimeng_tvm.request import Request, describe
from qimeng_tvm.schedule.apply import Task, build_schedule
from qimeng_tvm.schedule.contract import Value
from qimeng_tvm.schedule.prepack import MAIN, PACK, Operator, split_prepack

LIBRARY = "operator.so"
_LINKERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
#: C types of a tensor's elements; bfloat16 travels as its 16 bits.
_C_TYPES = {"float32": "float", "bfloat16": "uint16_t", "int32": "int32_t", "int16": "int16_t",
            "int8": "int8_t", "uint8": "uint8_t"}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One parameter of the operator."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Compiled:
    """An operator as machine code.

    Attributes
    ----------
    task : Task
        What was compiled.
    values : Mapping[str, int or str]
        The decisions.
    operator : Operator
        The scheduled module: ``main``, and ``pack_b`` when B is packed beforehand.
    library : tvm.runtime.Module or executable
        What TVM built.
    trace : str
        The schedule's trace, as JSON.
    intrins : tuple of str
        Canonical names of the intrinsics in it.
    """

    task: Task
    values: Mapping[str, Value]
    operator: Operator
    library: Any
    trace: str
    intrins: tuple[str, ...]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Parameters of ``main``, the output last."""
        return parameters_of(self.operator)

    @property
    def pack_parameters(self) -> tuple[Tensor, ...]:
        """Parameters of ``pack_b``: B and what ``main`` wants in its place; empty when B is not packed beforehand."""
        return pack_parameters_of(self.operator)

    def __getitem__(self, name: str) -> Any:
        """The compiled function ``main`` or ``pack_b``."""
        return self.library[name]


def tensors_of(func: Any) -> tuple[Tensor, ...]:
    """Parameters of a PrimFunc as plain data."""
    return tuple(Tensor(str(p.name), tuple(int(x) for x in p.shape), str(p.dtype)) for p in func.params)


def parameters_of(operator: Operator) -> tuple[Tensor, ...]:
    """Parameters of ``main``, the output last."""
    a, b, *more, out = tensors_of(operator.main)
    b = replace(b, name="B_packed") if operator.packs else b
    return (a, b, *more, replace(out, name="C"))


def pack_parameters_of(operator: Operator) -> tuple[Tensor, ...]:
    """Parameters of ``pack_b``: B and what ``main`` wants in its place; empty when B is not packed beforehand."""
    if operator.pack is None:
        return ()
    b, packed = tensors_of(operator.pack)
    return (b, replace(packed, name="B_packed"))


def compile_task(task: Task, values: Mapping[str, Value] | None = None) -> Compiled:
    """Schedule and build a task (default: with the analytic decisions).

    Raises
    ------
    ScheduleError
        If the decisions are not legal.
    BuildError
        If TVM or LLVM refuses the scheduled function.
    """
    chosen = {**task.space.defaults(), **(values or {})}
    sch = build_schedule(task, chosen)
    operator = split_prepack(sch.mod["main"])
    target = target_of(task.hardware, task.info.threads)
    try:
        library = build(operator.module, target)
    except (RuntimeError, ValueError, TypeError) as error:
        raise BuildError(
            f"TVM could not build {task.rule.name} with {chosen}: {str(error).splitlines()[-1]}"
        ) from error
    trace = json.dumps(_plain(sch.trace.as_json()))
    return Compiled(task, MappingProxyType(chosen), operator, library, trace, names_in(trace))


def _plain(value: Any) -> Any:
    """TVM's containers and numbers as Python's."""
    if isinstance(value, (list, tuple, tvm.ir.Array)):
        return [_plain(v) for v in value]
    if isinstance(value, (Mapping, tvm.ir.Map)):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tvm.tirx.IntImm, tvm.tirx.FloatImm)):
        return value.value
    return str(value) if isinstance(value, str) else value


def linker() -> str:
    """Return the C compiler that links shared libraries.

    Raises
    ------
    BuildError
        If there is none on the PATH.
    """
    for name in _LINKERS:
        if shutil.which(name):
            return name
    raise BuildError(f"no C compiler to link the operator with: install one of {', '.join(_LINKERS)}")


def linker_for(hardware: Hardware) -> str:
    """Return the compiler that links shared libraries for a machine.

    Raises
    ------
    BuildError
        If it is not installed: which, and how to get it.
    """
    if hardware.isa == host().isa:
        return linker()
    arch = hardware.triple.partition("-")[0]
    names = [f"{arch}-linux-gnu-{kind}" for kind in ("gcc", "g++")]
    found = next((name for name in names if shutil.which(name)), None)
    if found is None:
        package = f"gcc-{arch.replace('_', '-')}-linux-gnu"
        raise BuildError(
            f"code for {hardware.name} is linked here, and there is no {names[0]}: install it "
            f"(apt-get install {package} libc6-dev)"
        )
    return found


def export_library(library: Any, path: Path, hardware: Hardware | None = None) -> Path:
    """Link what TVM built as a shared library, atomically; for this machine unless another one is given."""
    path = Path(path)
    command = linker_for(hardware) if hardware is not None else linker()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".so")
        os.close(handle)
    except OSError as error:
        raise BuildError(
            f"cannot write to {path.parent}: {error.strerror or error}; give another folder with --out"
        ) from error
    try:
        library.export_library(temporary, fcompile=_linker_function(command))
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)
    except RuntimeError as error:
        raise BuildError(f"{command} could not link {path.name}: {str(error).splitlines()[-1]}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _linker_function(command: str) -> Any:
    def link(output: str, objects: Any, **options: Any) -> None:
        tvm.support.cc.create_shared(output, objects, cc=command, **options)

    # TVM asks the function which object format it takes.
    link.output_format = "so"  # type: ignore[attr-defined]
    return link


def header_text(compiled: Compiled, request: Request) -> str:
    """C header of the exported symbols (TVM FFI's C calling convention)."""
    lines = []
    for name, tensors in ((MAIN, compiled.parameters), (PACK, compiled.pack_parameters)):
        if not tensors:
            continue
        args = "\n".join(
            f" *   args[{i}]  {t.name}: {_C_TYPES[t.dtype]}[{']['.join(map(str, t.shape))}] ({t.dtype})"
            for i, t in enumerate(tensors)
        )
        lines.append(
            f"/* {name}: {len(tensors)} arguments, each a DLTensor* on the CPU, row-major, 64-byte aligned data:\n"
            f"{args}\n */\n"
            f"int __tvm_ffi_{name}(void* self, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result);\n"
        )
    body = "\n".join(lines)
    return (
        f"/* {describe(request)}\n * Made by QiMeng-TVM. Link with libtvm_ffi and libtvm_runtime. */\n"
        "#ifndef QIMENG_OPERATOR_H_\n#define QIMENG_OPERATOR_H_\n\n#include <stdint.h>\n#include <tvm/ffi/c_api.h>\n\n"
        f'#ifdef __cplusplus\nextern "C" {{\n#endif\n\n{body}\n#ifdef __cplusplus\n}}\n#endif\n\n#endif\n'
    )


_LOADER = Template('''"""Load and run the operator beside this file: $what

Needs apache-tvm (or apache-tvm-runtime), numpy$also.
"""

from pathlib import Path

import numpy as np
import tvm$imports

library = tvm.runtime.load_module(str(Path(__file__).with_name("$library")))
rng = np.random.default_rng(0)


def operand(shape, dtype):
    if np.issubdtype(np.dtype(dtype), np.integer):
        info = np.iinfo(dtype)
        return tvm.runtime.tensor(rng.integers(info.min, info.max + 1, shape, dtype=dtype))
    return tvm.runtime.tensor(rng.standard_normal(shape, dtype="float32").astype(dtype))


$body
print("$out_name:", $out_name.shape, $out_name.dtype)
''')


def loader_text(compiled: Compiled, request: Request) -> str:
    """A short Python program that loads the library and runs the operator."""
    *inputs, out = compiled.parameters
    dtype = {t.dtype: f'"{t.dtype}"' for t in compiled.parameters}
    has_bf16 = "bfloat16" in dtype or request.b_dtype == "bfloat16"
    if has_bf16:
        dtype["bfloat16"] = "ml_dtypes.bfloat16"
    lines = []
    for tensor in inputs:
        if compiled.operator.packs and tensor is inputs[1]:
            b, packed = compiled.pack_parameters
            kind = "ml_dtypes.bfloat16" if b.dtype == "bfloat16" else f'"{b.dtype}"'
            lines += [
                f"{b.name} = operand({b.shape}, {kind})",
                f'{tensor.name} = tvm.runtime.empty({packed.shape}, "{packed.dtype}")',
                f'library["{PACK}"]({b.name}, {tensor.name})  # once',
            ]
        else:
            lines.append(f"{tensor.name} = operand({tensor.shape}, {dtype[tensor.dtype]})")
    lines.append(f'{out.name} = tvm.runtime.empty({out.shape}, "{out.dtype}")')
    lines.append(f'library["{MAIN}"]({", ".join(t.name for t in (*inputs, out))})')
    return _LOADER.substitute(
        what=describe(request),
        also=" and ml_dtypes" if has_bf16 else "",
        imports="\nimport ml_dtypes" if has_bf16 else "",
        library=LIBRARY,
        body="\n".join(lines),
        out_name=out.name,
    )
