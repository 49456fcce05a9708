"""Manual text as it is given: read, bounded, told from what is not text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qimeng_tvm.errors import UsageError

#: Characters of all texts together, some 50 000 tokens: most models take as much, and answer worse on more.
MAX_CHARACTERS = 200_000


@dataclass(frozen=True)
class Manual:
    """A text about a machine.

    Attributes
    ----------
    name : str
        Of its file.
    text : str
        Plain text or Markdown.
    """

    name: str
    text: str


def read_manuals(paths: Sequence[Path]) -> tuple[Manual, ...]:
    """Read the texts.

    Raises
    ------
    UsageError
        If one cannot be read, is no text or is empty, or they are too long together.
    """
    found = tuple(_read(path) for path in paths)
    total = sum(len(m.text) for m in found)
    if total > MAX_CHARACTERS:
        raise UsageError(
            f"the manual has {total} characters, {MAX_CHARACTERS} are the most: "
            "give the chapters on registers, caches, cores and instructions alone"
        )
    return found


def _read(path: Path) -> Manual:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the manual {path}: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or data.startswith(b"%PDF"):
        raise UsageError(f"the manual {path} is not UTF-8 text: give its text (for a PDF: pdftotext -layout)")
    if not text.strip():
        raise UsageError(f"the manual {path} is empty")
    return Manual(path.name, text)
