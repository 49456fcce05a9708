"""Whether a quote is in a text, and whether a number is in a quote, in whatever unit and words it is written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal

#: What a number means: so many of something, bits, bytes, KiB, GiB, or the level of a cache.
Kind = Literal["count", "bits", "bytes", "kib", "gib", "level"]

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {
    **{word: i for i, word in enumerate(_ONES)},
    **{word: 20 + 10 * i for i, word in enumerate(_TENS)},
    **{"single": 1, "dual": 2, "quad": 4, "octa": 8},
}
_ORDINALS = {"first": 1, "primary": 1, "second": 2, "secondary": 2, "third": 3, "fourth": 4}
_TEN = re.compile(rf"\b({'|'.join(_TENS)})[- ]({'|'.join(_ONES[1:10])})\b")
_HUNDRED = re.compile(r"\b(\d+|an?|one|two|three|four|five) hundred(?: and)?(?: (\d+))?\b")
_WORD = re.compile(rf"\b({'|'.join(sorted(_WORDS, key=len, reverse=True))})\b")
#: Not the digits of a name: ``zmm31`` is no 31.
_NUMBER = re.compile(r"(?<![\w.])(\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)(?:[ -]?([A-Za-z]+))?")
_RANGE = re.compile(r"\b([A-Za-z]{1,4})(\d{1,4}) ?(?:-|to|through|\.\.\.?) ?(?:\1)?(\d{1,4})\b")
#: A unit that stands alone holds for the numbers without one: a table's head, ``size (KB)``, ``size in KB``.
_ALONE = re.compile(r"[(\[] ?(?:in )?([A-Za-z]+) ?[)\]]|\bin ([A-Za-z]+)\b")
_SCALES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PREFIX = "kilo|mega|giga|tera|kibi|mebi|gibi|tebi"
_UNIT = re.compile(rf"(?:([kmgt])i?|({_PREFIX}))?(?:b|bytes?|(bits?))|([kmgt])")
_DASHES: dict[int, str | None] = dict.fromkeys(map(ord, "‐‑‒–—―−"), "-")
_MARKS: dict[int, str | None] = {
    ord("‘"): "'",
    ord("’"): "'",
    ord("“"): '"',
    ord("”"): '"',
    ord("*"): None,
    ord("`"): None,
}


def plain(text: str) -> str:
    """Return a text as quotes are compared: one kind of dash, quotation mark and space, no emphasis, no case."""
    flat = unicodedata.normalize("NFKC", text).translate(_DASHES | _MARKS)
    return " ".join(flat.split()).casefold()


def numbers(quote: str, kind: Kind) -> frozenset[Fraction]:
    """Return every number of that kind in a quote, in the kind's own unit.

    ``1.5 MB`` is 1536 as ``kib``; ``thirty-two`` is 32 and ``v0-v31`` is 32 as a ``count``; ``64-byte`` is 512 as
    ``bits`` and no count at all.
    """
    # Before case is folded: a B is a byte, a b a bit.
    text = " ".join(unicodedata.normalize("NFKC", quote).translate(_DASHES | _MARKS).split())
    if kind == "level":
        return frozenset(map(Fraction, _levels(text.casefold())))
    text = _digits(text)
    alone = {word for pair in _ALONE.findall(text) for word in pair if word}
    ranges = [int(b) - int(a) + 1 for _, a, b in _RANGE.findall(text) if kind == "count" and int(b) > int(a)]
    found = {v for number, unit in _pairs(_RANGE.sub(" ", text)) for v in _readings(number, unit, alone, kind)}
    return frozenset({*found, *map(Fraction, ranges)})


def _pairs(text: str) -> Iterator[tuple[Fraction, str]]:
    for digits, unit in _NUMBER.findall(text):
        if len(digits) <= 30:
            yield Fraction(digits.replace(",", "")), unit


def _readings(number: Fraction, unit: str, alone: set[str], kind: Kind) -> Iterator[Fraction]:
    """Return what a number can mean."""
    size = _in_bits(unit)
    if kind == "count":
        if size is None:
            yield number
        return
    units = [size] if size is not None else [s for word in alone if (s := _in_bits(word)) is not None]
    one = {"bits": 1, "bytes": 8, "kib": 8 << 10, "gib": 8 << 30}[kind]
    for bits in units:
        yield number * bits / one


def _in_bits(unit: str) -> int | None:
    """Return a unit's size; None if it is not one of bits or bytes."""
    if unit == "b":
        return 1
    match = _UNIT.fullmatch(unit.lower())
    if match is None:
        return None
    letter = (match[1] or match[2] or match[4] or "")[:1]
    return (1 if match[3] else 8) * _SCALES.get(letter, 1)


def _levels(text: str) -> Iterator[int]:
    for found in re.findall(r"\bl([1-4])(?:[di]|\b)|\blevel[- ]([1-4])\b", text):
        yield int(found[0] or found[1])
    for word, value in _ORDINALS.items():
        if re.search(rf"\b{word}[- ]level\b|\b{word} (?:\w+ )?cache\b", text):
            yield value
    for word in re.findall(r"\blevel[- ](one|two|three|four)\b", text):
        yield _WORDS[word]


def _digits(text: str) -> str:
    """Write number words as digits."""
    lower = _lowered_words(text)
    lower = _TEN.sub(lambda m: str(_WORDS[m[1]] + _WORDS[m[2]]), lower)
    lower = _WORD.sub(lambda m: str(_WORDS[m[1]]), lower)
    return _HUNDRED.sub(lambda m: str(100 * int(m[1] if m[1].isdigit() else 1) + int(m[2] or 0)), lower)


def _lowered_words(text: str) -> str:
    """Fold the case of words, not of units: ``KB`` and ``B`` stay."""
    return re.sub(r"\b[A-Z][a-z]+\b", lambda m: m[0].lower(), text)
