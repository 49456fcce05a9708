"""Take the code out of a model's reply: exactly one block of Python, whole."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n`]*$", re.MULTILINE)
#: What a block may be marked as; the first is its name to people.
PYTHON = ("Python", "", "python", "py", "python3")
#: Longest reply that is looked at.
MAX_REPLY = 200_000


@dataclass(frozen=True)
class Answer:
    """What a reply holds.

    Attributes
    ----------
    source : str
        The code; empty when there is none that can be used.
    problem : str
        Why there is none; empty when there is.
    """

    source: str = ""
    problem: str = ""


def code_of(reply: str, truncated: bool = False, languages: tuple[str, ...] = PYTHON) -> Answer:
    """Return the code of a reply.

    Parameters
    ----------
    reply : str
        Markdown.
    truncated : bool
        The server says that it stopped early.
    languages : tuple of str
        Name of the language, and what the block may be marked as.
    """
    if len(reply) > MAX_REPLY:
        return Answer(problem=f"the reply has {len(reply)} characters; {MAX_REPLY} are the most")
    fences = list(_FENCE.finditer(reply))
    if not fences:
        return Answer(problem="the reply has no code block: answer with one block, ```python ... ```")
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for fence in fences:
        if opened is None:
            opened = fence
        elif not fence[2] and fence[1].startswith(opened[1]):
            blocks.append((opened[2].lower(), reply[opened.end() : fence.start()].strip("\n")))
            opened = None
    if opened is not None or truncated:
        return Answer(problem="the reply ends within the code block: answer with a whole module, and a shorter one")
    problem = _problem(blocks, languages)
    return Answer(problem=problem) if problem else Answer(source=blocks[0][1] + "\n")


def _problem(blocks: list[tuple[str, str]], wanted: tuple[str, ...]) -> str:
    """Say why the blocks are not one module; empty when they are."""
    languages = sorted({language for language, _ in blocks} - set(wanted))
    if languages:
        return f"the reply has a block of {', '.join(languages)}: answer with {wanted[0]} alone"
    if len(blocks) != 1:
        return f"the reply has {len(blocks)} code blocks: answer with one, the whole module"
    return "" if blocks[0][1].strip() else "the code block is empty"
