"""Blocking of what slides a window over images: legal tiles, what they cost, and the analytic choice among them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import ceil

from qimeng_tvm.errors import ScheduleError
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.intrin import IntrinFamily, families_for
from qimeng_tvm.schedule.blocking import WHOLE, balanced, round_up
from qimeng_tvm.schedule.contract import BlockInfo, Choose, Decision, SearchSpace, Value, Values, Window
from qimeng_tvm.schedule.estimate import WIDTH, rate, soft_max

#: Extents of a register tile worth trying: rows, columns, vectors of channels.
_ROWS, _COLUMNS, _VECTORS = (1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16), (1, 2, 3, 4, 5, 6, 8, 10, 12)
#: Rows of the output in a block, as targets.
_BLOCKS = (1, 2, 4, 8, 14, 16, 28, 32, 56)
#: Vector operations that may be written out for a tile: LLVM gets it several times, for the edges too.
_WRITTEN_OUT = 400
#: Cycles around a tile, of an iteration of a loop over taps, and of entering the innermost loop over tiles.
_AROUND, _ITERATION, _ENTERED = 4, 3, 12
#: Cycles that a vector costs which the registers do not hold until the last tap needs it.
_SPILLED = 3.0
#: Registers besides these that loads right before micro-kernels take.
_SPARE = 4
#: How much faster than a micro-kernel's operands whole images come: in order, and fetched long before.
_AHEAD = 2.0
#: How much longer a tile at the upper or lower edge takes whose taps are checked one by one, and whose rows of taps
#: are, in a loop.
_CHECKED, _LOOPED = 4.0, 1.5
#: Bytes of a pixel that cores get in each other's way with, where they share its channels: a pair of cache lines.
_SHARED = 128
#: The decision for plain vector code, which LLVM makes multiply-adds of.
NO_FAMILY = "none"
#: How much better a tile that no micro-kernel fits must be to be the default.
_NO_FAMILY_FITS = 1.3
#: Registers besides the sums: a vector of the image and one of the filters.
_OTHERS = 2
#: Bytes of a cache line, of which less is used where a few channels of each pixel pass.
_LINE = 64
#: Exponents of the soft maximum that models overlap: of a core's units; of computing and streaming.
_UNITS, _OVERLAP = 8.0, 2.0


@dataclass(frozen=True)
class WindowPlan:
    """Decisions turned into numbers.

    Attributes
    ----------
    rows, columns, vectors : int
        Of the output, held in registers.
    lanes : int
        Channels in a vector.
    row_tiles, row_blocks : int
        Tiles of rows in a block, and blocks of an image.
    column_tiles, channel_tiles : int
        Tiles of an image's columns and of its channels.
    order : str
        How far a tile's channels go before the next ones: ``block``, ``row``, ``pixel``.
    taps : str
        Which taps are written out: ``all``, those of one ``row`` of the window, ``none``.
    border : str
        ``checked`` where it is read, ``copied`` with the image block by block, ``none``: there is none.
    threads : int
        Cores that share the blocks.
    family : IntrinFamily, optional
        The micro-kernel that adds a tap to a row of a tile; none: plain vector code.
    """

    rows: int
    columns: int
    vectors: int
    lanes: int
    row_tiles: int
    row_blocks: int
    column_tiles: int
    channel_tiles: int
    order: str
    taps: str
    border: str
    threads: int
    family: IntrinFamily | None = None

    @property
    def vector_tile(self) -> int:
        """Vectors of the output in a tile."""
        return self.rows * self.columns * self.vectors

    @property
    def row_slots(self) -> int:
        """Rows of the output that the tiles cover: more than there are, where the last tile is not full."""
        return self.rows * self.row_tiles * self.row_blocks

    @property
    def in_local(self) -> bool:
        """Whether what a micro-kernel reads is loaded before: what may lie in the border is looked at on the way."""
        return self.border == "checked"

    def intrin_name(self, window: Window) -> str:
        """Return the canonical name of the micro-kernel."""
        assert self.family is not None
        step, local = window.stride[1], int(self.in_local)
        return self.family.intrin_name(mr=self.columns, nv=self.vectors, step=step, in_local=local)

    def written_out(self, window: Window) -> int:
        """Vector operations on sums that are written out for a tile."""
        taps = {"all": window.kernel[0] * window.kernel[1], "row": window.kernel[1], "none": 1}[self.taps]
        return taps * self.vector_tile


def has_fixed_vectors(hardware: Hardware) -> bool:
    """Tell whether TVM can be asked for vectors of so many lanes: a CPU whose vectors it does not make scalable.

    For RISC-V it turns vector loops into masked ones of scalable length, which a later pass of its own rejects.
    """
    return hardware.isa not in ("cuda", "riscv")


def lanes_of(channels: int, dtype: str, hardware: Hardware) -> int:
    """Return the channels of a vector: the most that divide them all; all of a few odd ones."""
    whole = hardware.vector_bits // (8 * WIDTH.get(dtype, 4))
    lanes = whole
    while lanes > 1 and channels % lanes:
        lanes //= 2
    return lanes if lanes >= min(4, whole) or channels > whole else channels


def lane_families(info: BlockInfo, hardware: Hardware) -> tuple[IntrinFamily, ...]:
    """Return the micro-kernels for a depthwise convolution's types whose vectors are those of its channels."""
    lanes = lanes_of(window_of(info).groups, info.acc_dtype, hardware)
    found = families_for(
        hardware.isa, (info.a_dtype, info.b_dtype, info.acc_dtype), hardware.features, kind="depthwise"
    )
    return tuple(f for f in found if f.lanes == lanes)


def split_tile(text: str) -> tuple[int, int, int]:
    """Read ``"2x7x1"``: rows, columns, vectors of channels."""
    rows, columns, vectors = text.split("x")
    return int(rows), int(columns), int(vectors)


def window_plan(
    info: BlockInfo, hardware: Hardware, choose: Choose, families: tuple[IntrinFamily, ...] = ()
) -> WindowPlan:
    """Turn decisions into loop extents; ``families`` are the micro-kernels that there are to choose from."""
    window = window_of(info)
    rows, columns, vectors = split_tile(choose("tile"))
    lanes = lanes_of(window.groups, info.acc_dtype, hardware)
    named = choose("family") if families else NO_FAMILY
    tiles = ceil(window.out[0] / rows)
    row_tiles = balanced(tiles, max(1, choose("row_block") // rows))
    return WindowPlan(
        rows=rows,
        columns=columns,
        vectors=vectors,
        lanes=lanes,
        row_tiles=row_tiles,
        row_blocks=ceil(tiles / row_tiles),
        column_tiles=ceil(window.out[1] / columns),
        channel_tiles=window.groups // (vectors * lanes),
        order=choose("order"),
        taps=choose("taps"),
        border=choose("border"),
        threads=info.threads if choose("parallel") == "yes" else 1,
        family=next((f for f in families if f.key == named), None),
    )


def window_of(info: BlockInfo) -> Window:
    """The window of a block that has one."""
    assert info.window is not None  # readers of windows give it
    return info.window


def window_space(info: BlockInfo, hardware: Hardware, families: tuple[IntrinFamily, ...] = ()) -> SearchSpace:
    """Return the decisions, their defaults those of the fewest estimated cycles."""
    # Whole images first: what costs the same is then not cut.
    blocks = (WHOLE, *(b for b in _BLOCKS if b < window_of(info).out[0]))
    choices: dict[str, tuple[tuple[Value, ...], str]] = {
        "tile": (_tiles(info, hardware), "rows x columns x vectors of channels of the output held in registers"),
        "row_block": (blocks, "rows of the output in one block"),
        "order": (("block", "row", "pixel"), "what a tile's channels pass over before the next channels' turn"),
        "taps": (("all", "row", "none"), "taps of the window that are written out: all, those of a row, none"),
        "border": (
            ("checked", "copied") if info.producers else ("none",),
            "zeros around the image: checked where they are read, or copied with the image block by block",
        ),
        "parallel": (("yes", "no") if info.threads > 1 else ("no",), "share blocks between the cores"),
    }
    best = _defaults(info, hardware, choices, families)
    if families:
        keys = (*(f.key for f in families), NO_FAMILY)
        choices = {"family": (keys, "micro-kernel family; none: plain vector code"), **choices}
    decisions = tuple(Decision(name, values, best[name], doc) for name, (values, doc) in choices.items())
    return SearchSpace(decisions, lambda values: window_illegal(info, hardware, values, families))


def window_illegal(
    info: BlockInfo, hardware: Hardware, values: Values, families: tuple[IntrinFamily, ...] = ()
) -> str | None:
    """Say why these decisions do not go together, or None."""
    return _problem(window_plan(info, hardware, values.__getitem__, families), window_of(info))


def _problem(plan: WindowPlan, window: Window) -> str | None:
    if plan.taps != "none" and plan.written_out(window) > _WRITTEN_OUT:
        return f"{plan.written_out(window)} operations are too many to write out for a tile"
    if plan.family is None:
        return None
    if not plan.family.fits(plan.rows * plan.columns, plan.vectors):
        return f"a tile of {plan.vector_tile} vectors does not fit the registers of {plan.family.key}"
    if window.out[1] % plan.columns:
        return f"micro-kernels of {plan.columns} pixels do not make up a row of {window.out[1]}"
    return None


def _tiles(info: BlockInfo, hardware: Hardware) -> tuple[str, ...]:
    """Tiles that the registers hold and the output fills, the largest last."""
    window = window_of(info)
    vectors = window.groups // lanes_of(window.groups, info.acc_dtype, hardware)
    fitting = [
        (r, c, v)
        for r, c, v in product(_ROWS, _COLUMNS, _VECTORS)
        if r <= window.out[0] and c <= window.out[1] and vectors % v == 0
        if r * c * v + _OTHERS <= hardware.vector_registers
    ]
    return tuple(f"{r}x{c}x{v}" for r, c, v in sorted(fitting, key=lambda t: t[0] * t[1] * t[2]))


def _defaults(
    info: BlockInfo,
    hardware: Hardware,
    choices: dict[str, tuple[tuple[Value, ...], str]],
    families: tuple[IntrinFamily, ...],
) -> dict[str, Value]:
    best: dict[str, Value] = {}
    best_cost, window = float("inf"), window_of(info)
    # A micro-kernel wherever there is one for the tile, and unless the tiles that there are one for are poor.
    named: dict[str, Value] = {"family": families[0].key} if families else {}
    for point in product(*(values for values, _ in choices.values())):
        values, penalty = {**named, **dict(zip(choices, point, strict=True))}, 1.0
        plan = window_plan(info, hardware, values.__getitem__, families)
        if plan.family is not None and _problem(plan, window) is not None:
            values["family"], penalty, plan = NO_FAMILY, _NO_FAMILY_FITS, replace(plan, family=None)
        if _problem(plan, window) is None:
            cost = penalty * window_cycles(info, plan, hardware)
            if cost < best_cost:
                best, best_cost = values, cost
    if not best:
        raise ScheduleError(f"no legal tile for a window of {window_of(info).kernel}")
    return best


def tile_cycles(info: BlockInfo, plan: WindowPlan, hardware: Hardware) -> float:
    """Cycles of one register tile with the image in the first-level cache."""
    p, window, tile = hardware.pipeline, window_of(info), plan.vector_tile
    taps = window.kernel[0] * window.kernel[1]
    # What is written out reads each vector of the image once.
    rows = plan.rows * window.kernel[0]
    columns = plan.columns * window.kernel[1]
    if plan.taps == "all":
        rows = min(rows, _read(plan.rows, window, 0))
    if plan.taps != "none":
        columns = min(columns, _read(plan.columns, window, 1))
    loads = rows * columns * plan.vectors
    widened = loads if info.a_dtype != info.acc_dtype else 0
    loads += taps * plan.vectors if info.kind == "depthwise" else 0
    vectors = taps * tile + widened + 2 * tile
    steps = soft_max(
        _UNITS,
        taps * tile / p.fma,
        loads / p.load,
        vectors / p.vector,
        (vectors + loads + tile) / p.issue,
        taps * p.latency,
        tile * 2,  # a store each, and what comes before it
    )
    iterations = {"all": 0, "row": window.kernel[0], "none": taps}[plan.taps]
    # LLVM unrolls what is left of the loops, loads each vector once and keeps it.
    waiting = plan.rows * _read(plan.columns, window, 1) * plan.vectors
    spare = 1 if plan.family is None else _SPARE
    spilled = max(0, tile + waiting + spare - hardware.vector_registers)
    return steps + _AROUND + iterations * _ITERATION + spilled * _SPILLED


def window_cycles(info: BlockInfo, plan: WindowPlan, hardware: Hardware) -> float:
    """Estimate the cycles of the whole operator on ``plan.threads`` cores."""
    window, narrow, wide = window_of(info), WIDTH.get(info.a_dtype, 4), WIDTH.get(info.out_dtype, 4)
    rows, columns = _read(window.out[0], window, 0), _read(window.out[1], window, 1)
    pieces = info.batch * plan.row_blocks
    tiles = pieces * plan.row_tiles * plan.column_tiles * plan.channel_tiles
    innermost = plan.channel_tiles if plan.order == "pixel" else plan.column_tiles
    compute = tiles * (tile_cycles(info, plan, hardware) + _ENTERED / innermost) * _edges(window, plan)

    pixel = window.groups * narrow
    passing = plan.vectors * plan.lanes * narrow if plan.order == "block" else pixel
    image = info.batch * rows * columns * pixel
    # Few channels of a pixel: the rest of its cache lines comes again for the next ones.
    block_rows = _read(plan.row_tiles * plan.rows, window, 0)
    again = 1.0 if passing >= _LINE or plan.order != "block" else _LINE / passing
    far = image / (_AHEAD * rate(hardware, image))
    near = image * (again - 1) / rate(hardware, block_rows * columns * max(passing, _LINE))
    strip = _read(plan.rows, window, 0)
    visits = strip / (plan.rows * window.stride[0])
    near += image * max(0.0, visits - 1) / rate(hardware, strip * columns * passing)
    written = info.batch * info.m * window.groups * wide
    stream = far + near + written / (_AHEAD * rate(hardware, image + written))
    if plan.threads > 1 and plan.order == "block" and plan.row_blocks * info.batch < plan.threads:
        stream *= 1 + _SHARED * plan.threads / pixel
    work = soft_max(_OVERLAP, compute, stream)
    if plan.border == "copied":
        copied = pieces * block_rows * columns * pixel
        work += 2 * copied / rate(hardware, block_rows * columns * passing) + copied / pixel * _ITERATION
    return _shared_out(plan, hardware, pieces, work)


def _read(outputs: int, window: Window, axis: int) -> int:
    """Rows (columns) of the image that as many of the output read."""
    return (outputs - 1) * window.stride[axis] + (window.kernel[axis] - 1) * window.dilation[axis] + 1


def _edges(window: Window, plan: WindowPlan) -> float:
    """How much the checks of a border make of the work: less where constants tell which taps there are."""
    if plan.border != "checked":
        return 1.0
    rows = plan.row_tiles * plan.row_blocks
    at_edges = min(1.0, 2 * ceil(window.kernel[0] // 2 / plan.rows) / rows)
    if plan.threads > 1 and plan.row_blocks > 1:
        # Which blocks have an edge is not known: each has its first and last tile for itself, a lone tile all checks.
        return 1.0 + (_CHECKED - 1) * at_edges + 1 / plan.row_tiles if plan.row_tiles > 1 else _CHECKED
    if plan.taps != "all":
        return 1.0 + (_LOOPED - 1) * at_edges
    if plan.family is not None:
        # A micro-kernel adds the products with the zeros of the border, too; rows of which there are none are left out.
        return (1.0 + window.out[0] / plan.row_slots) / 2
    left_out = [k // 2 * (k // 2 + 1) / (o * k) for o, k in zip(window.out, window.kernel, strict=True)]
    return float((1.0 - min(0.5, left_out[0])) * (1.0 - min(0.5, left_out[1])))


def _shared_out(plan: WindowPlan, hardware: Hardware, pieces: int, work: float) -> float:
    """Cycles until the last core is done."""
    if plan.threads <= 1:
        return work
    chunks = pieces * (plan.channel_tiles if plan.order == "block" else 1)
    return work * round_up(chunks, plan.threads) / plan.threads / chunks + hardware.pipeline.fork
