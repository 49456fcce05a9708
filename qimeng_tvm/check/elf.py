"""The few facts of an ELF file that the audit needs; no tool has to be installed for them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qimeng_tvm.errors import CheckError

_SYMTAB, _RELA, _DYNAMIC, _DYNSYM = 2, 4, 6, 11
_NEEDED = 1


@dataclass(frozen=True)
class Elf:
    """What a file imports.

    Attributes
    ----------
    machine : int
        ``e_machine``.
    undefined : tuple of str
        Symbols that others must define, weak ones included.
    defined : tuple of str
        Names of its own, local ones as far as they are not stripped.
    needed : tuple of str
        Libraries it asks the loader for.
    slots : mapping
        Address -> symbol that the loader puts there (the global offset table).
    """

    machine: int
    undefined: tuple[str, ...]
    defined: tuple[str, ...]
    needed: tuple[str, ...]
    slots: Mapping[int, str]


@dataclass(frozen=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int
    entry: int


def read_elf(path: str | Path) -> Elf:
    """Read a 64-bit little-endian ELF file.

    Raises
    ------
    CheckError
        If it is missing, or something else.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckError(f"cannot read {path}: {error.strerror}") from None
    if data[:6] != b"\x7fELF\x02\x01":
        raise CheckError(f"{path} is not a 64-bit little-endian ELF file")
    try:
        return _parse(data)
    except (struct.error, IndexError, ValueError) as error:
        raise CheckError(f"{path} is a damaged ELF file: {error}") from None


def _parse(data: bytes) -> Elf:
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = []
    for i in range(count):
        _name, kind, _flags, _addr, offset, length, link, _info, _align, entry = struct.unpack_from(
            "<IIQQQQIIQQ", data, table + i * size
        )
        sections.append(_Section(kind, offset, length, link, entry))

    def text(section: _Section, at: int) -> str:
        start = section.offset + at
        return data[start : data.index(b"\0", start)].decode(errors="replace")

    def symbols(section: _Section) -> list[tuple[str, bool]]:
        found = []
        for at in range(section.offset, section.offset + section.size, 24):
            name, _info, _other, home = struct.unpack_from("<IBBH", data, at)
            found.append((text(sections[section.link], name), home == 0))
        return found

    undefined: dict[str, None] = {}
    defined: dict[str, None] = {}
    slots: dict[int, str] = {}
    needed = []
    for section in sections:
        if section.kind in (_SYMTAB, _DYNSYM):
            for name, missing in symbols(section):
                if name:
                    (undefined if missing else defined)[name.partition("@")[0]] = None
        elif section.kind == _RELA and section.size and sections[section.link].kind == _DYNSYM:
            names = symbols(sections[section.link])
            for at in range(section.offset, section.offset + section.size, 24):
                address, info, _addend = struct.unpack_from("<QQq", data, at)
                if info >> 32:
                    slots[address] = names[info >> 32][0]
        elif section.kind == _DYNAMIC:
            for at in range(section.offset, section.offset + section.size, 16):
                tag, value = struct.unpack_from("<QQ", data, at)
                if tag == _NEEDED:
                    needed.append(text(sections[section.link], value))
    return Elf(machine, tuple(undefined), tuple(defined), tuple(needed), slots)
