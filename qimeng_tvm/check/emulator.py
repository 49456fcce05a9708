"""Run intrinsics of another machine under an emulator: compiled by TVM's LLVM, linked with a small harness.

The harness (``harness.c``) does what the native check does: every buffer between guard pages and canaries, inputs that
must not change, two runs at other addresses that must agree bit for bit. The cases, the oracle and the bounds are the
same.
"""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_tvm.check.buffers import numpy_dtype
from qimeng_tvm.check.numbers import Argument, Case, NumbersReport, compare_output
from qimeng_tvm.check.worker import signal_meaning
from qimeng_tvm.errors import CheckError
from qimeng_tvm.files import TomlError, config_path, parse_toml
from qimeng_tvm.hardware.model import Hardware

_SECONDS = 120.0
_CODES = {"i": 0, "u": 1, "f": 2}
_BFLOAT = 4
#: Harness statuses, see ``harness.c``.
_STATUS: Mapping[int, tuple[Any, str]] = {
    1: ("canary", "it wrote outside a buffer"),
    2: ("input-changed", "it changed one of its inputs"),
    3: ("not-deterministic", "two runs in fresh memory gave different answers"),
}


@dataclass(frozen=True)
class Emulator:
    """What runs a static program of another machine.

    Attributes
    ----------
    name : str
        For people: ``qemu-aarch64 -cpu neoverse-n1``.
    compiler : str
        The C compiler that links for that machine.
    commands : tuple of tuple of str
        What stands before the program; each of them must give right answers.
    """

    name: str
    compiler: str
    commands: tuple[tuple[str, ...], ...]


def emulator_for(hardware: Hardware) -> Emulator:
    """Return the emulator of a machine.

    A command of the user's own, ``[emulators]`` in the configuration file, comes first: ``x86 = ["sde64", "-spr",
    "--"]``. For ARM and RISC-V there is QEMU.

    Raises
    ------
    CheckError
        If there is none, or a program is missing: which, and how to get it.
    """
    compilers = {"x86": "cc", "arm": "aarch64-linux-gnu-gcc", "riscv": "riscv64-linux-gnu-gcc"}
    compiler = compilers.get(hardware.isa, "")
    own = configured().get(hardware.isa)
    if own:
        commands: tuple[tuple[str, ...], ...] = (own,)
    elif hardware.isa == "arm":
        commands = (("qemu-aarch64", "-cpu", hardware.emulated_cpu or "max"),)
    elif hardware.isa == "riscv":
        # Code for a shortest vector length must be right on longer ones, too.
        lengths = (hardware.vector_bits, 2 * hardware.vector_bits)
        commands = tuple(("qemu-riscv64", "-cpu", f"rv64,v=true,vlen={n},vext_spec=v1.0") for n in lengths)
    else:
        raise CheckError(
            f"nothing emulates {hardware.name} here: name a command in {config_path()}, "
            f'[emulators] {hardware.isa} = ["sde64", "-spr", "--"]'
        )
    packages = {"aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
                "riscv64-linux-gnu-gcc": "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross",
                "qemu-aarch64": "qemu-user", "qemu-riscv64": "qemu-user"}  # fmt: skip
    for program in (compiler, commands[0][0]):
        if shutil.which(program) is None:
            package = f": apt-get install {packages[program]}" if program in packages else ""
            raise CheckError(f"{hardware.name} is emulated with {program}, which is not installed{package}")
    return Emulator(" ".join(commands[0]), compiler, commands)


@cache
def configured() -> dict[str, tuple[str, ...]]:
    """Return the emulators that the configuration file names, by instruction set.

    Raises
    ------
    CheckError
        If the table is not a command for each instruction set.
    """
    path = config_path()
    if not path.is_file():
        return {}
    try:
        table = parse_toml(path.read_text(encoding="utf-8")).get("emulators", {})
    except (OSError, TomlError) as error:
        raise CheckError(f"{path} cannot be read: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(c, list) and c for c in table.values()):
        raise CheckError(f'{path}: [emulators] holds lines such as x86 = ["sde64", "-spr", "--"]')
    return {isa: tuple(map(str, command)) for isa, command in table.items()}


def run_emulated(
    emulator: Emulator, library: Any, cases: Mapping[str, tuple[Sequence[Argument], Sequence[Case]]]
) -> NumbersReport:
    """Run the functions of a compiled module, each on its cases; the last argument is the output. In the worker."""
    worst, count = 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = _linked(emulator, library, folder)
        for function, (arguments, some) in cases.items():
            _write_cases(folder / "in", arguments, some)
            for command in emulator.commands:
                report = _run(command, program, function, folder)
                if report is None:
                    report = _compared(folder / "out", arguments, some)
                if not report.ok:
                    return report
                worst, count = max(worst, report.error_ratio), count + report.cases
    return NumbersReport("ok", f"{count} cases right under {emulator.name}", cases=count, error_ratio=worst)


def _linked(emulator: Emulator, library: Any, folder: Path) -> Path:
    code, program = folder / "kernel.o", folder / "program"
    library.write_to_file(str(code))
    harness = Path(__file__).with_name("harness.c")
    command = [emulator.compiler, "-O1", "-static", "-o", str(program), str(harness), str(code), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise CheckError(f"{emulator.compiler} could not link the intrinsic: {last[0]}")
    return program


def _write_cases(path: Path, arguments: Sequence[Argument], cases: Sequence[Case]) -> None:
    with path.open("wb") as stream:
        stream.write(struct.pack("<2i", len(cases), len(arguments)))
        for case in cases:
            for argument, values in zip(arguments, case.inputs, strict=True):
                array = np.ascontiguousarray(values)
                kind = _BFLOAT if argument.dtype == "bfloat16" else _CODES[array.dtype.kind]
                stream.write(struct.pack("<4i", array.ndim, kind, array.itemsize * 8, 1))
                stream.write(np.array(array.shape, "<i8").tobytes() + array.tobytes())


def _run(command: Sequence[str], program: Path, function: str, folder: Path) -> NumbersReport | None:
    """Run the program; return what it died of, or None."""
    given = [*command, str(program), function, str(folder / "in"), str(folder / "out")]
    try:
        done = subprocess.run(given, capture_output=True, text=True, check=False, timeout=_SECONDS, cwd=folder)
    except subprocess.TimeoutExpired:
        return NumbersReport("timeout", f"no answer within {_SECONDS:g} s under {command[0]}")
    if not done.returncode:
        return None
    number = -done.returncode if done.returncode < 0 else done.returncode - 128
    words = " ".join(done.stderr.split())[-300:]
    if number in {s.value for s in signal.Signals}:
        name = signal.Signals(number).name
        return NumbersReport("crash", f"{name} ({signal_meaning(name)}) in the {function} placement, {command[0]}")
    return NumbersReport("error", f"exit status {done.returncode} in the {function} placement: {words}")


def _compared(path: Path, arguments: Sequence[Argument], cases: Sequence[Case]) -> NumbersReport:
    out = arguments[-1]
    dtype = numpy_dtype(out.dtype)
    size = int(np.prod(out.shape)) * dtype.itemsize
    data = path.read_bytes() if path.exists() else b""
    if len(data) != len(cases) * (4 + size):
        return NumbersReport("error", f"the program wrote {len(data)} bytes, not {len(cases) * (4 + size)}")
    worst = 0.0
    for number, case in enumerate(cases):
        at = number * (4 + size)
        (status,) = struct.unpack_from("<i", data, at)
        if status:
            kind, text = _STATUS.get(status, ("error", f"status {status}"))
            return NumbersReport(kind, f"{text} ({case.label})", case.label)
        answer = np.frombuffer(data, dtype, offset=at + 4, count=size // dtype.itemsize).reshape(out.shape)
        report = compare_output(out.name, answer, case.expected[0], case.bounds[0], case.label)
        if not report.ok:
            return report
        worst = max(worst, report.error_ratio)
    return NumbersReport("ok", cases=len(cases), error_ratio=worst)
