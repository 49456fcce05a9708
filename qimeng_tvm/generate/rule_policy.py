"""What the source of a rule from a model may import, reach and call: see :mod:`qimeng_tvm.check.source`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qimeng_tvm.check.source import Policy
from qimeng_tvm.generate.rules import RuleTask

Names = Mapping[str, tuple[str, ...]]


def _words(**names: str) -> Names:
    return MappingProxyType({module: tuple(words.split()) for module, words in names.items()})


@dataclass(frozen=True)
class Api:
    """What rules of one kind are made of.

    Attributes
    ----------
    helpers : mapping
        Of a module of :mod:`qimeng_tvm.schedule` to what may be called of it, by the name it has in the source.
    functions : mapping
        Of such a module to what is imported from it by itself.
    attributes : str
        What may be asked for of plans, blocks and other values, and the schedule primitives.
    families : bool
        It looks for micro-kernels.
    """

    helpers: Names
    functions: Names
    attributes: str
    families: bool = False


_CONTRACT = "BlockInfo Choose Decision ScheduleRule SearchSpace Value Values".split()
_PRIMITIVES = (
    "split reorder fuse parallel vectorize unroll compute_at reverse_compute_at compute_inline set_scope annotate "
    "get_loops get decompose_reduction"
)
_BLOCK = (
    "kind batch m n k a_dtype b_dtype acc_dtype out_dtype transpose_a transpose_b batch_a batch_b constant_b "
    "producers consumers threads window out kernel stride dilation groups"
)
_MACHINE = "isa features caches cores registers vector_bits vector_registers"
_RULE = "name version priority families match space estimate apply"
_LOOPS = "a b axes loops extents read_index extent size"
_FAMILY = "lanes k_pack k_step storage parameters fits key requires dtypes intrin_name"

_PRODUCT = Api(
    _words(
        blocking="gemm_space gemv_space gemm_plan GemmPlan",
        steps="parts_of pad row_panels k_panels pack write_back vectorize_inner tensorize",
        packing="needs_shuffles pack_rows pack_panels peel",
    ),
    _words(estimate="gemm_cycles"),
    "family mr nv kc mc nc k_blocks m_blocks n_blocks order inner_order pack_a pack_b unroll a_panel prefetch ahead nr "
    f"c_local padded_m padded_n padded_k {_FAMILY}",
    families=True,
)
_CONV2D = Api(
    _words(steps="vectorize_inner tensorize", packing="peel"),
    _words(
        analysis="blocks_behind",
        conv_blocking="ConvPlan conv_plan conv_space kernels_of",
        conv_estimate="conv_cycles",
        conv_form="ConvForm form_of",
        convolution="Around around",
    ),
    "form family mr nv kc calls gather copy rows row_blocks panels filter_blocks order inner_order unroll nr row_tiles "
    "merged channels filters dtype pack c f x columns pad writes reads source "
    f"transform_layout transform_block_layout unsafe_set_dtype cache_read {_FAMILY}",
    families=True,
)
_WINOGRAD = Api(
    _words(steps="vectorize_inner tensorize", packing="peel"),
    _words(
        winograd="Around around",
        winograd_blocking="WinogradPlan winograd_plan winograd_space winograd_cycles",
        winograd_form="TILE",
    ),
    "form family mr nv copy rows row_blocks panels filter_blocks order inner_order unroll nr row_tiles pixel_lanes "
    f"pad pixels back transform_layout cache_read cache_write {_FAMILY}",
    families=True,
)
_WINDOW = Api(
    _words(
        window_blocking="has_fixed_vectors window_space window_plan window_cycles WindowPlan",
        windows="border_of",
        steps="write_back vectorize_inner",
        packing="peel",
    ),
    _words(windows="border_of"),
    "rows columns vectors lanes row_tiles row_blocks column_tiles channel_tiles order taps border vector_tile",
)
_DEPTHWISE = Api(
    _words(
        window_blocking="has_fixed_vectors lane_families window_space window_plan window_cycles window_of WindowPlan",
        windows="border_of",
        steps="write_back vectorize_inner tensorize",
        packing="peel",
    ),
    _words(windows="border_of"),
    f"{_WINDOW.attributes} family in_local row_slots cache_read blockize {_FAMILY}",
    families=True,
)
_ROWWISE = Api(
    _words(
        rowwise="space estimate plan_of RowPlan regroup reductions_of partial_width row_loops keep_near loops_below "
        "Below",
        elementwise="vectorize is_bounded",
        packing="peel",
    ),
    _words(),
    "lanes accumulators together side_by_side kept reduced writes source rfactor merge get_child_blocks",
)
_ELEMENTWISE = Api(
    _words(elementwise="space estimate plan_of ElementwisePlan outputs join Joined vectorize", packing="peel"),
    _words(),
    "lanes tile across",
)
_APIS: Mapping[str, Api] = MappingProxyType(
    {
        "matmul": _PRODUCT,
        "conv2d": _CONV2D,
        "winograd": _WINOGRAD,
        "depthwise": _DEPTHWISE,
        "pool": _WINDOW,
        "rowwise": _ROWWISE,
        "elementwise": _ELEMENTWISE,
    }
)


def api_of(task: RuleTask) -> Api:
    """Return what a rule of a task's kind is made of."""
    return _APIS[task.kind]


def rule_policy(task: RuleTask) -> Policy:
    """Return what a rule's source may say."""
    api = api_of(task)
    own = {"qimeng_tvm.schedules.cpu.gemm": frozenset({"PackedGemm"})} if task.rows else {}
    intrin = {"qimeng_tvm.intrin": frozenset({"IntrinFamily", "families_for"})} if api.families else {}
    reach = {module: frozenset(names) for module, names in api.helpers.items()}
    if "steps" in reach and api.families:
        reach["steps"] |= {"PREPACK"}
    return Policy(
        modules={
            "__future__": frozenset({"annotations"}),
            "collections.abc": frozenset({"Sequence"}),
            "dataclasses": frozenset({"dataclass"}),
            "typing": frozenset({"Any"}),
            "tvm.s_tir": frozenset({"Schedule"}),
            "tvm.s_tir.schedule": frozenset({"LoopRV", "SBlockRV"}),
            "qimeng_tvm.hardware.model": frozenset({"Hardware"}),
            **intrin,
            "qimeng_tvm.schedule": frozenset({*_CONTRACT, *api.helpers}),
            **{f"qimeng_tvm.schedule.{module}": frozenset(names) for module, names in api.functions.items()},
            **own,
        },
        reach=reach,
        attributes=frozenset(f"{_PRIMITIVES} {api.attributes} {_BLOCK} {_MACHINE} {_LOOPS} {_RULE}".split()),
        llvm=frozenset(),
        classes=True,
    )
