"""The rules that a model is asked to write, and what their source may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qimeng_tvm.check.source import Policy
from qimeng_tvm.errors import UsageError
from qimeng_tvm.request import Request


@dataclass(frozen=True)
class RuleTask:
    """A schedule rule to write.

    Attributes
    ----------
    name, version : str, int
        What it must declare; the name is also its place (``cpu.gemm``: ``schedules/cpu/gemm.py``).
    operator, title : str
        What it is asked for by, and what it is.
    priority : int
        Rules of a higher one are asked first.
    rows : int
        Most rows of C that it serves; 0: any.
    decisions : tuple of str
        Names that its space must have.
    """

    name: str
    version: int
    operator: str
    title: str
    priority: int
    rows: int
    decisions: tuple[str, ...]

    @property
    def module(self) -> str:
        """File without its folder and suffix."""
        return self.name.rsplit(".", 1)[-1]


_DECISIONS = tuple("family micro_kernel kc mc nc order inner_order pack_a pack_b unroll prefetch parallel".split())
#: By operator. Two versions of each were written by hand.
RULES: Mapping[str, RuleTask] = MappingProxyType(
    {
        "gemm": RuleTask("cpu.gemm", 3, "gemm", "matrix products on CPUs", 0, 0, _DECISIONS),
        "gemv": RuleTask("cpu.gemv", 3, "gemv", "skinny matrix products (M <= 8) on CPUs", 1, 8, _DECISIONS),
    }
)


def rule_task(operator: str) -> RuleTask:
    """Return the rule for an operator.

    Raises
    ------
    UsageError
        If there is none.
    """
    if operator not in RULES:
        raise UsageError(f"no rule is written for {operator!r}; there are {', '.join(RULES)}")
    return RULES[operator]


#: What a rule may import and call of ours, by the name it has in the source.
HELPERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "blocking": ("gemm_space", "gemv_space", "gemm_plan", "GemmPlan"),
        "steps": ("parts_of", "pad", "row_panels", "k_panels", "pack", "write_back", "vectorize_inner", "tensorize"),
        "packing": ("needs_shuffles", "pack_rows", "pack_panels", "peel"),
    }
)
_SCHEDULE = (
    "split reorder fuse parallel vectorize unroll compute_at reverse_compute_at compute_inline set_scope annotate "
    "get_loops get decompose_reduction"
)
_FIELDS = (
    "family mr nv kc mc nc k_blocks m_blocks n_blocks order inner_order pack_a pack_b unroll threads a_panel prefetch "
    "ahead nr c_local padded_m padded_n padded_k intrin_name "  # of a plan
    "kind batch m n k a_dtype b_dtype acc_dtype out_dtype transpose_a transpose_b batch_a batch_b constant_b "
    "producers consumers "  # of a block
    "isa features caches cores registers lanes k_pack k_step storage parameters fits key requires dtypes "
    "a b axes loops extents read_index extent size "  # of operands and loops
    "name version priority families match space estimate apply"
)


def rule_policy(task: RuleTask) -> Policy:
    """Return what a rule's source may say."""
    own = {"qimeng_tvm.schedules.cpu.gemm": frozenset({"PackedGemm"})} if task.name != "cpu.gemm" else {}
    return Policy(
        modules={
            "__future__": frozenset({"annotations"}),
            "dataclasses": frozenset({"dataclass"}),
            "typing": frozenset({"Any"}),
            "tvm.s_tir": frozenset({"Schedule"}),
            "tvm.s_tir.schedule": frozenset({"LoopRV", "SBlockRV"}),
            "qimeng_tvm.hardware.model": frozenset({"Hardware"}),
            "qimeng_tvm.intrin": frozenset({"IntrinFamily", "families_for"}),
            "qimeng_tvm.schedule": frozenset(
                "BlockInfo Choose Decision ScheduleRule SearchSpace Value Values blocking packing steps".split()
            ),
            "qimeng_tvm.schedule.estimate": frozenset({"gemm_cycles"}),
            **own,
        },
        reach={
            **{module: frozenset(names) for module, names in HELPERS.items()},
            "steps": frozenset({*HELPERS["steps"], "PREPACK"}),
        },
        attributes=frozenset(f"{_SCHEDULE} {_FIELDS}".split()),
        llvm=frozenset(),
        classes=True,
    )


def _product(m: int, n: int, k: int, dtypes: str = "f32", threads: int = 1, **more: object) -> Request:
    a, b, out = {
        "f32": ("float32", "float32", "float32"),
        "bf16": ("bfloat16", "bfloat16", "float32"),
        "u8s8": ("uint8", "int8", "int32"),
        "s8s8": ("int8", "int8", "int32"),
    }[dtypes]
    return Request("matmul", m, n, k, a_dtype=a, b_dtype=b, out_dtype=out, threads=threads, **more)  # type: ignore[arg-type]


def checked_requests(task: RuleTask) -> tuple[Request, ...]:
    """Return operators that a rule is checked on: whole tiles, edges, a split K, every layout, two threads."""
    ms = (64, 61, 130, 16, 40, 37) if not task.rows else (1, 3, 8, 1, 4, 2)
    found = []
    for dtypes in ("f32", "bf16", "u8s8", "s8s8"):
        found += [
            _product(ms[0], 64, 64, dtypes),
            _product(ms[1], 67, 71, dtypes),
            _product(ms[2], 70, 300, dtypes, threads=2),
            _product(ms[3], 100, 64, dtypes, constant_b=True),
            _product(ms[4], 56, 72, dtypes, transpose_a=True, transpose_b=True, batch=2),
            _product(ms[5], 45, 53, dtypes, epilogue=("bias", "relu"), constant_b=True, transpose_b=True),
        ]
    return (*found, _product(ms[0], 300, 1030, threads=2, constant_b=True))


def timed_requests(task: RuleTask) -> tuple[Request, ...]:
    """Return operators that a rule is timed on."""
    if task.rows:
        return (
            _product(1, 4096, 4096, constant_b=True),
            _product(4, 3072, 768, constant_b=True),
            _product(1, 1024, 1024),
            _product(1, 4096, 1024, "bf16", constant_b=True),
            _product(8, 1024, 1024, "u8s8", constant_b=True),
        )
    return (
        _product(256, 256, 256),
        _product(1024, 1024, 1024, constant_b=True),
        _product(255, 257, 263),
        _product(16, 3072, 768, constant_b=True),
        _product(512, 512, 512, "bf16"),
        _product(512, 512, 512, "u8s8", constant_b=True),
    )
