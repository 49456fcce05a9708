"""Natural loops of a disassembled function."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qimeng_tvm.check.assembly import Function, Instruction


@dataclass(frozen=True)
class Loop:
    """A loop, or a function's straight-line part (``depth`` 0): what it runs itself, inner loops left out."""

    function: Function
    depth: int
    instructions: tuple[Instruction, ...]

    @property
    def text(self) -> str:
        """The instructions, one a line, with addresses."""
        return "\n".join(f"{i.address:8x}: {i.text}" for i in self.instructions)


def find_loops(function: Function) -> list[Loop]:
    """Return every loop of a function, and first what lies outside all loops.

    Loops are natural loops (of edges back to a block that dominates them), so cold code placed behind the function
    that jumps back into it is not taken for one.
    """
    starts = _leaders(function)
    successors = _edges(function, starts)
    dominator = _dominators(_with_root(function, starts, successors))
    bodies: dict[int, set[int]] = {}
    for block, following in enumerate(successors):
        for header in following:
            if block in dominator and _dominates(header, block, dominator):
                bodies.setdefault(header, {header}).update(_body(header, block, successors))
    # The innermost loop of a block is the smallest that holds it.
    headers = sorted(bodies, key=lambda h: len(bodies[h]))
    bounds = [*starts, len(function.instructions)]
    own: dict[int | None, list[Instruction]] = {None: [], **{h: [] for h in headers}}
    for block in range(len(starts)):
        home = next((h for h in headers if block in bodies[h]), None)
        own[home].extend(function.instructions[bounds[block] : bounds[block + 1]])
    depths = {h: sum(bodies[h] <= bodies[other] for other in headers) for h in headers}
    loops = [Loop(function, 0, tuple(own[None]))]
    return loops + [Loop(function, depths[h], tuple(own[h])) for h in sorted(headers)]


def _leaders(function: Function) -> list[int]:
    isa = function.isa
    at = {ins.address: i for i, ins in enumerate(function.instructions)}
    leaders = {0}
    for i, ins in enumerate(function.instructions):
        if re.fullmatch(isa.jump, ins.mnemonic) or re.fullmatch(isa.leave, ins.mnemonic):
            leaders.add(i + 1)
            if ins.target in at:
                leaders.add(at[ins.target])
    return sorted(i for i in leaders if i < len(function.instructions))


def _edges(function: Function, starts: list[int]) -> list[list[int]]:
    isa = function.isa
    block_at = {function.instructions[s].address: b for b, s in enumerate(starts)}
    edges = []
    for block in range(len(starts)):
        end = starts[block + 1] if block + 1 < len(starts) else len(function.instructions)
        last = function.instructions[end - 1]
        following = []
        stops = re.fullmatch(isa.leave, last.mnemonic) or re.fullmatch(isa.goto, last.mnemonic)
        if not stops and block + 1 < len(starts):
            following.append(block + 1)
        if re.fullmatch(isa.jump, last.mnemonic) and last.target in block_at:
            following.append(block_at[last.target])
        edges.append(following)
    return edges


def _with_root(function: Function, starts: list[int], successors: list[list[int]]) -> list[list[int]]:
    """Add a block that leads to the entry, and to all that is reached by jumps through a table or a pointer."""
    bounds = [*starts, len(function.instructions)]
    seen: set[int] = set()
    roots = []
    for block in range(len(starts)):
        filler = function.instructions[bounds[block] : bounds[block + 1]]
        # Padding before a loop falls into it, but is never run.
        if block in seen or all(re.fullmatch(function.isa.padding, i.text) for i in filler):
            continue
        roots.append(block)
        work = [block]
        while work:
            here = work.pop()
            if here not in seen:
                seen.add(here)
                work += successors[here]
    return [*successors, roots]


def _dominators(successors: list[list[int]]) -> dict[int, int]:
    """Immediate dominators of what the last block reaches (Cooper, Harvey, Kennedy 2001)."""
    order: list[int] = []
    root = len(successors) - 1
    seen = {root}
    stack = [(root, iter(successors[root]))]
    while stack:
        block, rest = stack[-1]
        following = next(rest, None)
        if following is None:
            order.append(block)
            stack.pop()
        elif following not in seen:
            seen.add(following)
            stack.append((following, iter(successors[following])))
    rank = {block: i for i, block in enumerate(order)}
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for following in successors[block]:
            before[following].append(block)
    dominator = {root: root}
    changed = True
    while changed:
        changed = False
        for block in reversed(order[:-1]):
            known = [p for p in before[block] if p in dominator]
            new = known[0]
            for other in known[1:]:
                while new != other:
                    while rank[new] < rank[other]:
                        new = dominator[new]
                    while rank[other] < rank[new]:
                        other = dominator[other]  # noqa: PLW2901 (the paper's "intersect")
            if dominator.get(block) != new:
                dominator[block] = new
                changed = True
    return dominator


def _dominates(above: int, block: int, dominator: Mapping[int, int]) -> bool:
    while block != above and block != dominator[block]:
        block = dominator[block]
    return block == above


def _body(header: int, tail: int, successors: list[list[int]]) -> set[int]:
    before: dict[int, list[int]] = {}
    for block, following in enumerate(successors):
        for f in following:
            before.setdefault(f, []).append(block)
    body, work = {header, tail}, [tail]
    while work:
        block = work.pop()
        if block == header:
            continue
        for p in before.get(block, []):
            if p not in body:
                body.add(p)
                work.append(p)
    return body
