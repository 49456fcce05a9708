"""The pipeline ``relax.build(mod, target, relax_pipeline="qimeng")``: from any model to scheduled functions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from qimeng_tvm.errors import QimengError, UsageError
from qimeng_tvm.hardware import Hardware, measured, target_of
from qimeng_tvm.intrin import families_for
from qimeng_tvm.relax.buckets import Buckets, bucket_sizes, specialize
from qimeng_tvm.relax.linking import link_functions
from qimeng_tvm.relax.prepare import legalize_and_fuse
from qimeng_tvm.relax.report import PipelineReport
from qimeng_tvm.relax.scheduling import schedule_module
from qimeng_tvm.relax.slicing import slice_attention
from qimeng_tvm.relax.views import return_views
from qimeng_tvm.relax.winograd import winograd

Say = Callable[[str], None]

#: What products and convolutions of float32 can be computed in.
DTYPES = ("f32", "bf16")
#: Operands and sums of ``bf16``.
BF16 = ("bfloat16", "bfloat16", "float32")


class Pipeline:
    """What ``relax_pipeline`` takes: called with a module, it returns one that the virtual machine can be built from.

    Parameters
    ----------
    hardware : Hardware, optional
        The machine that the code is for; by default this one, its peak measured once and kept.
    database : path, optional
        Folder of tuning records; the user's own by default.
    trials : int
        Measured trials over all functions before anything is scheduled; with 0 nothing is measured, and records of
        earlier tuning are used.
    threads : int, optional
        Cores that the code may use; by default the target's ``num-cores``, or all of the machine.
    strategy : str, optional
        Of tuning.
    seed : int
        Of tuning.
    say : callable
        Told of every stage.
    dtype : str
        ``f32``, or ``bf16``: products and convolutions of float32 then take operands rounded to bfloat16.
    buckets : mapping of str to sequence of int, optional
        Sizes of symbolic dimensions that get functions of their own, chosen at run time; by default up to four of a
        single such dimension, and the general function for all others.
    winograd : bool
        Whether 3x3 convolutions of float32 may be computed by Winograd's method where it is estimated to be faster;
        their results differ from those of plain sums in the last digits.

    Attributes
    ----------
    report : PipelineReport or None
        What became of every function of the last module.
    """

    def __init__(
        self,
        hardware: Hardware | None = None,
        database: str | os.PathLike[str] | None = None,
        trials: int = 0,
        threads: int | None = None,
        strategy: str | None = None,
        seed: int = 0,
        say: Say = lambda _: None,
        dtype: str = "f32",
        buckets: Buckets | None = None,
        winograd: bool = True,
    ) -> None:
        if trials < 0:
            raise UsageError(f"{trials} trials asked for; 0 or more are needed")
        if dtype not in DTYPES:
            raise UsageError(f"{dtype!r} is no type that products can be computed in: {' or '.join(DTYPES)}")
        self.hardware = hardware
        self.database = Path(database) if database is not None else None
        self.trials, self.threads, self.strategy, self.seed, self.say = trials, threads, strategy, seed, say
        self.dtype = dtype
        self.buckets = buckets
        self.winograd = winograd
        self.report: PipelineReport | None = None
        self._seconds: dict[str, float] = {}

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        """Take a module through all stages.

        Raises
        ------
        QimengError
            If the options are of no use, or tuning was asked for and cannot be done.
        """
        hardware = self.machine()
        threads = self.cores(hardware)
        self._seconds = {}
        target = target_of(hardware, threads)
        with self._timed("legalize and fuse"):
            fused = self.fused(module)
        if self.trials:
            with self._timed("tune"):
                self._tune(fused, hardware, threads)
        with self._timed("schedule"), target:
            scheduled, functions = schedule_module(fused, hardware, threads, self.records())
        # Now, not at the end: where a later stage is refused, it tells what was to be built.
        self.report = PipelineReport(functions, threads, hardware.name, self._seconds)
        with self._timed("pack weights"), target:
            packed = pack_weights()(scheduled)
        with self._timed("plan memory"), target:
            planned = relax.get_pipeline("default")(return_views()(packed))
        with self._timed("compile"):
            linked = link_functions(planned, target)
        return linked

    def fused(self, module: tvm.IRModule) -> tvm.IRModule:
        """Return a module's functions before any schedule: those that are tuned, and whose records are looked up.

        Raises
        ------
        UsageError
            If the machine cannot compute in the type that was asked for, or buckets do not fit the module.
        """
        hardware = self.machine()
        if self.dtype == "bf16" and not families_for(hardware.isa, BF16, hardware.features):
            raise UsageError(f"no micro-kernel computes bfloat16 products on {hardware.name}: leave dtype at 'f32'")
        bucketed = specialize(module, bucket_sizes(module, self.buckets))
        threads = self.cores(hardware)
        late = [winograd(hardware, threads)] if self.winograd and self.dtype == "f32" else []
        fused = legalize_and_fuse(bucketed, target_of(hardware, threads), self.dtype, late=late)
        return slice_attention(hardware, threads)(fused)

    def machine(self) -> Hardware:
        """Return the machine that the code is for."""
        return self.hardware if self.hardware is not None else measured(Hardware.host())

    def cores(self, hardware: Hardware) -> int:
        """Return the cores that the code may use."""
        if self.threads is not None:
            return self.threads
        target = tvm.target.Target.current(allow_none=True)
        named = target.attrs.get("num-cores", None) if target is not None else None
        return min(int(named), hardware.cores) if named else hardware.cores

    def records(self) -> Path:
        """Return the folder of tuning records."""
        from qimeng_tvm.api import default_database  # noqa: PLC0415 (it imports what makes operators)

        return self.database if self.database is not None else default_database()

    def _tune(self, fused: tvm.IRModule, hardware: Hardware, threads: int) -> None:
        from qimeng_tvm.model_tuning import tune_functions  # noqa: PLC0415 (it imports this package)
        from qimeng_tvm.relax.functions import functions_in  # noqa: PLC0415

        host = Hardware.host()
        if hardware.fingerprint != host.fingerprint:
            raise QimengError(f"tuning measures this machine, and the code is for {hardware.name}: ask for 0 trials")
        tune_functions(
            functions_in(fused, hardware, threads), hardware, threads, self.records(), self.trials,
            strategy=self.strategy, seed=self.seed, say=self.say,
        )  # fmt: skip

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        self.say(stage)
        start = time.monotonic()
        yield
        self._seconds[stage] = time.monotonic() - start


def pack_weights() -> tvm.transform.Pass:
    """Return the pass that packs weights once: constants now, parameters in a function ``NAME_transform_params``.

    The latter is made for functions that say which parameters are weights, by the attribute ``num_input``.
    """
    return tvm.transform.Sequential(
        [
            relax.transform.SplitLayoutRewritePreproc(),
            relax.transform.LiftTransformParams(),
            relax.transform.FoldConstant(),
        ]
    )


def pipeline(**options: Any) -> Pipeline:
    """Return the pipeline with options; see :class:`Pipeline`."""
    return Pipeline(**options)
