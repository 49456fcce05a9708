"""A request line to tokens: numbers, words and a few symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qimeng_tvm.errors import RequestError

_ARROWS = ("->", "=>", "→")
_TIMES = "×*✕⨯"
_BRACKETS = {"(": "(", "[": "(", "{": "(", ")": ")", "]": ")", "}": ")"}
_COUNTING = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "eight": 8, "sixteen": 16}
_MAX_DIGITS = 18


@dataclass(frozen=True)
class Token:
    """One token.

    Attributes
    ----------
    kind : str
        ``"number"``, ``"word"`` or ``"symbol"``.
    text : str
        As written.
    word : str
        Lower case and canonical: ``"x"`` for every multiplication sign, ``"->"`` for every arrow.
    value : int or None
        Of a number.
    """

    kind: Literal["number", "word", "symbol"]
    text: str
    word: str
    value: int | None = None


def scan(line: str) -> list[Token]:
    """Split a line into tokens.

    Raises
    ------
    RequestError
        If a number is not a whole number.
    """
    tokens: list[Token] = []
    at = 0
    while at < len(line):
        c = line[at]
        if c.isspace():
            at += 1
            continue
        arrow = next((a for a in _ARROWS if line.startswith(a, at)), None)
        if arrow:
            tokens.append(Token("symbol", arrow, "->"))
            at += len(arrow)
        elif line.startswith("**", at):
            tokens.append(Token("symbol", "**", "^"))
            at += 2
        elif c == "³":
            tokens += [Token("symbol", "^", "^"), Token("number", "3", "3", 3)]
            at += 1
        elif c in _TIMES or _is_times(line, at, tokens):
            tokens.append(Token("symbol", c, "x"))
            at += 1
        elif _digit(line, at) or (c in "-+" and (_digit(line, at + 1))):
            at = _number(line, at, tokens)
        elif c.isalpha() or c == "_":
            at = _word(line, at, tokens)
        else:
            tokens.append(Token("symbol", c, _BRACKETS.get(c, c)))
            at += 1
    return tokens


def _digit(line: str, at: int) -> bool:
    return at < len(line) and line[at] in "0123456789"


def _alnum(line: str, at: int) -> bool:
    return at < len(line) and (line[at].isalnum() or line[at] == "_")


def _is_times(line: str, at: int, tokens: list[Token]) -> bool:
    """Tell whether an x stands between two things: ``64x32``, ``64 x 32``, ``(64)x(32)``, ``u8 x s8``."""
    if line[at] not in "xX":
        return False
    if not _alnum(line, at + 1):
        return bool(tokens)
    after_number = bool(tokens) and (tokens[-1].kind == "number" or tokens[-1].word == ")")
    return after_number and _digit(line, at + 1)


def _number(line: str, at: int, tokens: list[Token]) -> int:
    """Take a whole number: sign, 1,024 or 1_024 grouping, k for 1024."""
    start = at
    if line[at] in "-+":
        at += 1
    first = at
    while _digit(line, at) or (line[at : at + 1] == "_" and _digit(line, at + 1)):
        at += 1
    if at - first <= 3:  # 1,024 but not 1024,512 and not 64, 128
        while line[at : at + 1] == "," and all(_digit(line, at + i) for i in (1, 2, 3)) and not _digit(line, at + 4):
            at += 4
    end = at
    if line[at : at + 1] in (".", "e", "E") and _digit(line, at + 1):
        while _digit(line, at) or (line[at : at + 1] or " ") in ".eE":
            at += 1
        raise RequestError(f'"{line[start:at]}" is not a whole number; write e.g. {line[first:end]}')
    digits = "".join(c for c in line[first:end] if c not in ",_")
    if len(digits) > _MAX_DIGITS:
        raise RequestError(f'"{digits[:12]}..." is far too large; no machine holds such a shape')
    value = int(digits)
    if _is_kilo(line, at):
        value *= 1024
        at += 1
    if line[start] == "-":
        value = -value
    tokens.append(Token("number", line[start:at], str(value), value))
    return at


def _is_kilo(line: str, at: int) -> bool:
    """Tell whether a k here means 1024: ``1k``, ``1kx1kx1k``; not ``64K=32`` (M=64K=32 without a space)."""
    if line[at : at + 1] not in ("k", "K"):
        return False
    if line[at + 1 :].lstrip().startswith(("=", ":")) and not line[at + 1 :].lstrip().startswith("=>"):
        return False
    return not _alnum(line, at + 1) or (line[at + 1] in "xX" and _digit(line, at + 2))


def _word(line: str, at: int, tokens: list[Token]) -> int:
    """Take a word; - and . belong to it between letters or digits (``cortex-a76``)."""
    start = at
    while _alnum(line, at) or (line[at : at + 1] in ("-", ".") and _alnum(line, at + 1)):
        at += 1
        if line[at : at + 1] == "³":
            break
    text = line[start:at]
    word = text.lower()
    if word in _COUNTING:
        tokens.append(Token("number", text, word, _COUNTING[word]))
    else:
        tokens.append(Token("word", text, word))
    return at
