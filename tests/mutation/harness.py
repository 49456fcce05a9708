"""Apply a mutation and put the result through the same checks that everything goes through.

Three ways in: a family's source (and the helpers it builds on) with text replaced; a whole operator, its scheduled
TensorIR or its rule's source with text replaced; a shared library written in C. In every one an unmutated original
passes, and a mutant that cannot be applied or built is an exception, never "caught".
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import tvm
import tvm_ffi
from tvm.s_tir import TensorIntrin

from qimeng_tvm import operators
from qimeng_tvm.check.audit import audit
from qimeng_tvm.check.intrinsic import examine
from qimeng_tvm.check.numbers import NumbersReport
from qimeng_tvm.check.worker import Outcome, Worker
from qimeng_tvm.compiler import Compiled, Tensor, compile_task, export_library, linker
from qimeng_tvm.hardware import Hardware, host, target_of
from qimeng_tvm.intrin import IntrinFamily, IntrinName, family
from qimeng_tvm.intrin.registry import only
from qimeng_tvm.operators import prim_func
from qimeng_tvm.request import Request, parse
from qimeng_tvm.schedule.apply import Task, make_task
from qimeng_tvm.schedule.contract import Value
from qimeng_tvm.schedule.prepack import Operator
from qimeng_tvm.verify import OperatorSpec, check_code, check_numbers

#: (text, replacement) and, when the text occurs several times, which of them (from 0) or "all".
Edit = tuple[str, str] | tuple[str, str, int | str]
#: Module name -> edits of its source, in the order in which they build on each other.
Sources = Mapping[str, Sequence[Edit]]
#: What a check may say of a mutant. An "error" (something was refused, or raised) is a mutant that does not run.
FAILURES = frozenset(
    (
        "wrong",
        "canary",
        "input-changed",
        "not-deterministic",
        "unwritten",
        "crash",
        "timeout",
        "meaning",
        "audit",
        "time",
    )
)
#: What the worker prints before it calls the function under test.
RUNNING = "every buffer lies against the guard page"

_numbers = itertools.count()


class Unmutated(AssertionError):
    """The mutation does not change what it should change."""


@dataclass(frozen=True)
class Verdict:
    """What the checks said: ``ok``, or the kind of the first failure."""

    kind: str
    message: str = ""


@dataclass(frozen=True)
class Mutation:
    """A wrong variant.

    Attributes
    ----------
    name, breaks : str
        Unique name; what is wrong with it, in a line.
    group : str
        What is mutated: ``family``, ``packing``, ``rule``, ``artefact``, ``time``.
    dtype : str
        Of the operands.
    expects : frozenset of str
        Kinds of failure by which it may be caught, all among ``FAILURES``.
    apply : callable
        Make it and check it.
    threads : int
        Cores it needs.
    requires : tuple of str
        LLVM features without which it does not run.
    """

    name: str
    breaks: str
    group: str
    dtype: str
    expects: frozenset[str]
    apply: Callable[[Bench], Verdict]
    threads: int = 1
    requires: tuple[str, ...] = ()


def rewritten(script: str, edits: Sequence[tuple[str, str, str]]) -> str:
    """Replace patterns in a scheduled module's text: (block, pattern, replacement); the block "" is all of it."""
    for block, pattern, replacement in edits:
        lines = script.splitlines(keepends=True)
        first, last = 0, len(lines)
        if block:
            heads = [i for i, line in enumerate(lines) if f'T.sblock("{block}")' in line]
            if not heads:
                raise Unmutated(f"no block {block!r}")
            first = heads[0]
            indent = len(lines[first]) - len(lines[first].lstrip())
            inside = (i for i in range(first + 1, len(lines)) if lines[i].strip())
            last = next((i for i in inside if len(lines[i]) - len(lines[i].lstrip()) <= indent), len(lines))
        text, count = re.subn(pattern, replacement, "".join(lines[first:last]))
        if not count:
            raise Unmutated(f"{pattern!r} is not in block {block!r}")
        script = "".join([*lines[:first], text, *lines[last:]])
    return script


def edited(text: str, edits: Sequence[Edit]) -> str:
    """Replace text; what is not found, or is found more often than said, is an error."""
    for old, new, *which in edits:
        count = text.count(old)
        at = which[0] if which else 0
        if count == 0 or (not which and count > 1) or (isinstance(at, int) and at >= count):
            raise Unmutated(f"{old!r} occurs {count} times")
        if at == "all":
            text = text.replace(old, new)
            continue
        parts = text.split(old)
        text = old.join(parts[: int(at) + 1]) + new + old.join(parts[int(at) + 1 :])
    return text


def _absolute(text: str, package: str) -> str:
    """Write imports that are relative to a package out."""
    resolve = importlib.util.resolve_name
    return re.sub(r"^from (\.+\w+)", lambda found: f"from {resolve(found[1], package)}", text, flags=re.MULTILINE)


class Relay:
    """Two workers in turn: while one replaces a process that crashed, the other goes on."""

    def __init__(self, preload: tuple[str, ...]) -> None:
        self._workers = [Worker(preload=preload), Worker(preload=preload)]
        self._starting: threading.Thread | None = None
        self._start_spare()

    def _start_spare(self) -> None:
        self._starting = threading.Thread(target=self._workers[1].start)
        self._starting.start()

    def call(self, *args: Any, **options: Any) -> Outcome:
        """Call in the worker at the front; see :meth:`Worker.call`."""
        outcome = self._workers[0].call(*args, **options)
        if outcome.kind in ("crash", "timeout", "memory"):
            self.renew()
        return outcome

    def renew(self) -> None:
        """Put the other worker at the front, and start this one afresh."""
        if self._starting is not None:
            self._starting.join()
        self._workers[0].close()
        self._workers.reverse()
        self._start_spare()

    def close(self) -> None:
        """End both."""
        if self._starting is not None:
            self._starting.join()
        for worker in self._workers:
            worker.close()


def _kept_to(values: Mapping[str, Value]) -> AbstractContextManager[None]:
    """Let rules see the family of these decisions alone, though this machine may have a better one."""
    return only({str(values["family"])} if "family" in values else ())


@dataclass
class Bench:
    """The worker, and what all mutations share."""

    worker: Any
    folder: Path
    hardware: Hardware = field(default_factory=host)
    _bases: dict[Any, Base] = field(default_factory=dict)

    def load(self, sources: Sources) -> ModuleType:
        """Load copies of modules with their text replaced, each using the copies before it; return the last."""
        number = next(_numbers)
        copies: dict[str, ModuleType] = {}
        for name, edits in sources.items():
            original = importlib.import_module(name)
            text = _absolute(edited(Path(str(original.__file__)).read_text(), edits), str(original.__package__))
            path = self.folder / f"mutant_{number}_{name.rsplit('.', maxsplit=1)[-1]}.py"
            path.write_text(text)
            spec = importlib.util.spec_from_file_location(f"mutant_{number}.{name.rsplit('.', maxsplit=1)[-1]}", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            for attribute, value in list(vars(module).items()):
                for known, copy in copies.items():
                    if value is sys.modules[known]:
                        setattr(module, attribute, copy)
                    elif getattr(value, "__module__", None) == known and hasattr(copy, attribute):
                        setattr(module, attribute, getattr(copy, attribute))
            copies[name] = module
        return module

    # -- families

    def family(self, kind: str, sources: Sources, parameters: Mapping[str, int], max_spills: int | None) -> Verdict:
        """Check a family whose source, or whose helpers' source, is replaced."""
        module = self.load(sources)
        found: IntrinFamily = getattr(module, kind).__qimeng_family__
        original = getattr(importlib.import_module(list(sources)[-1]), kind).__qimeng_family__
        parameters = {p: parameters[p] for p in found.parameters}
        if any(sources.values()):
            pairs = zip(found.build(**parameters), original.build(**parameters), strict=True)
            same = all(tvm_ffi.structural_equal(x, y, map_free_vars=True) for x, y in pairs)
            if same and found == replace(original, build=found.build):
                raise Unmutated("desc, impl and declaration are the original's")
        report = examine(self.worker, found, parameters, hardware=self.hardware, max_spills=max_spills)
        if not report.numbers.ok:
            if report.numbers.argument == "desc":
                return Verdict("meaning", report.numbers.message)
            return _verdict(report.numbers)
        return Verdict("ok") if report.ok else Verdict("audit", report.problem)

    # -- operators

    def base(self, line: str, values: Mapping[str, Value], threads: int = 1) -> Base:
        """Compile the original of an operator, once."""
        key = (line, tuple(sorted(values.items())), threads)
        if key not in self._bases:
            request = replace(parse(line), threads=threads)
            _, func = prim_func(request, target_of(self.hardware, threads))
            with _kept_to(values):
                task = make_task(func, self.hardware, threads)
                assert task is not None
                self._bases[key] = Base(request, compile_task(task, values))
        return self._bases[key]

    def operator(self, base: Base, module: Any = None, request: Request | None = None) -> Verdict:
        """Build and check an operator: the original's module, or another one in its place."""
        compiled = base.compiled
        if module is not None:
            if tvm_ffi.structural_equal(module, compiled.operator.module, map_free_vars=True):
                raise Unmutated("the scheduled module is the original's")
            operator = Operator(module, compiled.operator.packs)
            target = target_of(self.hardware, compiled.task.info.threads)
            compiled = replace(compiled, operator=operator, library=tvm.tirx.build(module, target=target))
        path = export_library(compiled.library, self.folder / "operator.so")
        spec = OperatorSpec(str(path), request or base.request, compiled.parameters, compiled.pack_parameters)
        numbers = check_numbers(self.worker, spec, timeout=60)
        if not numbers.ok:
            return _verdict(numbers)
        code = check_code(compiled, path)
        return Verdict("ok") if code.ok else Verdict("audit", "; ".join(code.problems))

    def rescheduled(self, base: Base, sources: Sources) -> Verdict:
        """Check an operator that a mutated rule has scheduled."""
        module = self.load(sources)
        task: Task = base.compiled.task
        rule = getattr(module, type(task.rule).__name__)()
        with _kept_to(base.compiled.values):
            scheduled = compile_task(replace(task, rule=rule), base.compiled.values)
        return self.operator(base, scheduled.operator.module)

    def lowered(self, line: str, sources: Sources) -> Verdict:
        """Check an operator that mutated passes have brought from Relax to a function."""
        request = replace(parse(line), threads=1)
        functions = [m.prim_func(request, target_of(self.hardware, 1))[1] for m in (operators, self.load(sources))]
        if tvm_ffi.structural_equal(*functions, map_free_vars=True):
            raise Unmutated("the fused function is the original's")
        task = make_task(functions[1], self.hardware, 1)
        assert task is not None
        return self.operator(Base(request, compile_task(task)))

    def repacked(self, base: Base, module_name: str, edits: Sequence[Edit]) -> Verdict:
        """Check an operator whose intrinsics of one module come from mutated source."""
        module = self.load({module_name: edits})
        names = [IntrinName.parse(name) for name in base.compiled.intrins]
        mine = [n for n in names if n.module == module_name.rsplit(".", maxsplit=1)[-1]]
        if not mine:
            raise Unmutated(f"the operator uses no intrinsic of {module_name}: {base.compiled.intrins}")
        registered = [str(name) for name in base.compiled.intrins if IntrinName.parse(name) in mine]
        try:
            for text, name in zip(registered, mine, strict=True):
                wrong = getattr(module, name.kind).__qimeng_family__.build(*name.values)
                TensorIntrin.register(text, *wrong, override=True)
            with _kept_to(base.compiled.values):
                scheduled = compile_task(base.compiled.task, base.compiled.values).operator.module
        finally:
            for text, name in zip(registered, mine, strict=True):
                TensorIntrin.register(text, *family(name.key).build(*name.values), override=True)
        return self.operator(base, scheduled)

    # -- shared libraries

    def library(
        self, source: str, flags: Sequence[str], request: Request, mnemonics: Sequence[str] = (), timeout: float = 60
    ) -> Verdict:
        """Compile C with TVM's calling convention, and check it as the operator of a request."""
        text, path = self.folder / "artefact.c", self.folder / "artefact.so"
        text.write_text(source)
        includes = [f"-I{tvm_ffi.libinfo.find_include_path()}", f"-I{tvm_ffi.libinfo.find_dlpack_include_path()}"]
        command = [linker(), "-x", "c", "-O1", "-shared", "-fPIC", *flags, *includes, str(text), "-o", str(path), "-lm"]
        subprocess.run([*command, "-lpthread"], check=True, capture_output=True, text=True)
        inputs = [Tensor("A", request.a_shape, request.a_dtype), Tensor("B", request.b_shape, request.b_dtype)]
        parameters = (*inputs, Tensor("C", request.out_shape, request.out_dtype))
        numbers = check_numbers(self.worker, OperatorSpec(str(path), request, parameters, ()), timeout=timeout)
        if not numbers.ok:
            return _verdict(numbers)
        code = audit(path, mnemonics)
        return Verdict("ok") if code.ok else Verdict("audit", "; ".join(code.problems))


@dataclass(frozen=True)
class Base:
    """An operator as it should be."""

    request: Request
    compiled: Compiled

    @cached_property
    def script(self) -> str:
        """Its scheduled module as text."""
        return str(self.compiled.operator.module.script())


def _verdict(report: NumbersReport) -> Verdict:
    died = report.kind in ("crash", "timeout")
    unfit = "symbol lookup error" in report.message or "SIGILL" in report.message
    if died and (unfit or RUNNING not in report.message):
        # It died before it ran: TVM, LLVM, the loader or the machine did not take it.
        return Verdict("error", report.message)
    return Verdict(report.kind, report.message)
