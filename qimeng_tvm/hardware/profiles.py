"""Machines described in TOML: the shipped ones in ``profiles/``, the user's own, or any file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qimeng_tvm.errors import HardwareError
from qimeng_tvm.files import TomlError, parse_toml
from qimeng_tvm.hardware.host import host, llvm_cores, llvm_features, near
from qimeng_tvm.hardware.model import Cache, Hardware

HOST = "host"
Count = Annotated[int, Field(ge=1)]


class CacheEntry(BaseModel):
    """One ``[[caches]]`` table."""

    model_config = ConfigDict(extra="forbid", strict=True)

    level: Annotated[int, Field(ge=1, le=4)]
    kib: Count
    line: Count = 64
    ways: Annotated[int, Field(ge=0)] = 0
    shared_by: Count = 1


class ProfileFile(BaseModel):
    """A profile as it is written."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1)]
    isa: Literal["x86", "arm", "riscv"]
    cpu: Annotated[str, Field(min_length=1)]
    triple: Annotated[str, Field(pattern=r"^[^-\s]+(-[^-\s]+){1,3}$")]
    cores: Count
    smt: Count = 1
    vector_bits: Annotated[int, Field(ge=64, multiple_of=32)]
    vector_registers: Count
    memory_gib: Count
    features: list[str]
    caches: Annotated[list[CacheEntry], Field(min_length=1)]
    emulated_cpu: str = ""

    @model_validator(mode="after")
    def _levels_outward(self) -> ProfileFile:
        levels = [cache.level for cache in self.caches]
        if levels != sorted(set(levels)):
            raise ValueError("caches must be listed nearest first, one per level")
        return self

    def hardware(self) -> Hardware:
        """Return the machine; LLVM adds what the CPU name implies to the features that the file names.

        Raises
        ------
        HardwareError
            If LLVM does not know the CPU: it would take it for the plainest one, without a word.
        """
        cores = llvm_cores(self.triple)
        if self.cpu not in cores:
            raise HardwareError(
                f"profile {self.name}: cpu: LLVM knows no core {self.cpu!r} for {self.triple}{near(self.cpu, cores)}"
            )
        return Hardware(
            name=self.name,
            isa=self.isa,
            cpu=self.cpu,
            triple=self.triple,
            cores=self.cores,
            smt=self.smt,
            vector_bits=self.vector_bits,
            vector_registers=self.vector_registers,
            caches=tuple(Cache(c.level, c.kib << 10, c.line, c.ways, c.shared_by) for c in self.caches),
            features=llvm_features(self.cpu, self.triple, [f"+{name}" for name in sorted(self.features)]),
            memory_bytes=self.memory_gib << 30,
            emulated_cpu=self.emulated_cpu,
        )


def _folder() -> Any:
    return resources.files("qimeng_tvm.hardware") / "profiles"


def own_folder() -> Path:
    """Return where this user's own profiles lie."""
    return Path(platformdirs.user_data_dir("qimeng_tvm")) / "profiles"


def names() -> tuple[str, ...]:
    """Return the names that :func:`load` knows: ``"host"``, then the shipped profiles, then the user's own."""
    return (HOST, *shipped_names(), *own_names())


def shipped_names() -> tuple[str, ...]:
    """Return the names of the shipped profiles."""
    return tuple(sorted(e.name.removesuffix(".toml") for e in _folder().iterdir() if e.name.endswith(".toml")))


def own_names() -> tuple[str, ...]:
    """Return the names of the user's own profiles; a shipped one goes before one of the same name."""
    return tuple(sorted({path.stem for path in own_folder().glob("*.toml")} - {HOST, *shipped_names()}))


def key_of(name: str) -> str:
    """Return a profile's name as it is looked up: ``Cortex-X9`` is ``cortex_x9``."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def read_profile(text: str, where: str) -> ProfileFile:
    """Read and check a profile's TOML text; ``where`` names it in errors."""
    try:
        return ProfileFile.model_validate(parse_toml(text))
    except TomlError as error:
        raise HardwareError(f"profile {where} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise HardwareError(f"profile {where}: {field}: {first['msg']}") from error


def load(name: str) -> Hardware:
    """Return a machine by name.

    Parameters
    ----------
    name : str
        ``"host"`` for the detected machine, a profile (:func:`names`), or the path of a ``.toml`` file.

    Raises
    ------
    HardwareError
        If there is no such profile, or it cannot be understood.
    """
    if name.endswith(".toml"):
        return _read(Path(name)).hardware()
    key = key_of(name)
    if key == HOST:
        return host()
    if key not in names():
        raise HardwareError(
            f"no hardware is called {name!r}; known: {', '.join(names())}, or the path of a .toml profile"
        )
    if key in own_names():
        return _read(own_folder() / f"{key}.toml").hardware()
    return read_profile((_folder() / f"{key}.toml").read_text(encoding="utf-8"), key).hardware()


def _read(path: Path) -> ProfileFile:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HardwareError(f"profile {path} cannot be read: {error}") from error
    return read_profile(text, str(path))
