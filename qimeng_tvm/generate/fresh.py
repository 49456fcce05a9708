"""A family for one request, written now: what ``run`` does when nothing shipped fits, or when it is told to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from qimeng_tvm.errors import GenerateError, UsageError
from qimeng_tvm.files import write_atomic
from qimeng_tvm.generate.intrinsic import IntrinsicSubject
from qimeng_tvm.generate.produce import produce, reference_for
from qimeng_tvm.generate.tasks import IntrinsicTask, products_of
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import families
from qimeng_tvm.intrin.registry import own_folder
from qimeng_tvm.llm.budget import Budget
from qimeng_tvm.llm.messages import Client
from qimeng_tvm.request import Request

Say = Callable[[str], None]


def task_of_operands(request: Request, hardware: Hardware) -> IntrinsicTask:
    """Return the task that writes the widest micro-kernel for a request's operands.

    Raises
    ------
    UsageError
        If the facts files know no primitive of this machine for them.
    """
    fitting = products_of((request.a_dtype, request.b_dtype), hardware)
    if not fitting:
        raise UsageError(
            f"{hardware.name} has no primitive for {request.a_dtype} x {request.b_dtype} that the facts files know: "
            f"add one to qimeng_tvm/generate/facts/{hardware.isa}.toml, or choose another dtype"
        )
    return max(fitting, key=lambda t: t.lanes * t.k_pack)


def fresh_family(
    request: Request,
    hardware: Hardware,
    client: Client,
    *,
    rounds: int = 4,
    budget: Budget | None = None,
    say: Say = lambda _: None,
) -> str:
    """Have a family written for a request, and put it among the user's own; return its key.

    Its file is named after its text, so that records of it are never taken for those of another one.

    Raises
    ------
    GenerateError
        If no answer passed the checks.
    """
    task = task_of_operands(request, hardware)
    subject = IntrinsicSubject(task, hardware, reference_for(task))
    folder = own_folder()
    made = produce(subject, client, folder.parent / "generated", rounds=rounds, budget=budget, say=say)
    source = made.path.read_text(encoding="utf-8")
    module = f"{task.module}_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    path = folder / task.isa / f"{module}.py"
    try:
        write_atomic(path, source)
    except OSError as error:
        raise GenerateError(f"cannot write {path}: {error.strerror or error}") from error
    families.cache_clear()
    say(f"{task.key}: {path}")
    return f"{task.isa}.{module}.gemm"
