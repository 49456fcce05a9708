"""Measured figures, kept per machine so that they are measured once."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import platformdirs
import tvm
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qimeng_tvm.errors import HardwareError
from qimeng_tvm.files import write_atomic
from qimeng_tvm.hardware import peak
from qimeng_tvm.hardware.host import host
from qimeng_tvm.hardware.model import Hardware

_LOCK_SECONDS = 60.0
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PeaksFile(BaseModel):
    """What a cache file holds: the figures, and what they are figures of."""

    model_config = ConfigDict(extra="forbid", strict=True)

    machine: str
    fingerprint: str
    cores: Annotated[int, Field(ge=1)]
    tvm: str
    loops: int
    peaks: dict[str, Rate]
    peaks_all: dict[str, Rate]
    copy_gbps: Rate
    read_gbps: Rate
    read_gbps_all: Rate


def default_directory() -> Path:
    """Return the user's cache folder for this package."""
    return Path(platformdirs.user_cache_dir("qimeng_tvm"))


def _identity(hardware: Hardware) -> dict[str, str | int]:
    return {
        "machine": hardware.name,  # chips of one design and different clocks share a fingerprint
        "fingerprint": hardware.fingerprint,
        "cores": hardware.cores,
        "tvm": str(tvm.__version__),
        "loops": peak.LOOPS_VERSION,
    }


def cache_path(hardware: Hardware, directory: Path | None = None) -> Path:
    """Return the file that holds the machine's figures."""
    identity = json.dumps(_identity(hardware), sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return (directory or default_directory()) / f"peaks-{hardware.fingerprint}-{digest}.json"


def read_peaks(hardware: Hardware, directory: Path | None = None, *, warn: bool = True) -> peak.Peaks | None:
    """Return the figures kept for the machine; None when there are none, or (with a warning) when they are damaged."""
    path = cache_path(hardware, directory)
    try:
        content = PeaksFile.model_validate_json(path.read_bytes())
        if any(getattr(content, key) != value for key, value in _identity(hardware).items()):
            raise ValueError("it describes another machine")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        if warn:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            _warn(path, f"{reason}; measuring again")
        return None
    return peak.Peaks(
        MappingProxyType(content.peaks),
        MappingProxyType(content.peaks_all),
        content.copy_gbps,
        content.read_gbps,
        content.read_gbps_all,
    )


def write_peaks(hardware: Hardware, figures: peak.Peaks, directory: Path | None = None) -> bool:
    """Keep the figures, atomically; False (with a warning) when the folder cannot be written."""
    path = cache_path(hardware, directory)
    try:
        content = PeaksFile.model_validate(
            {
                **_identity(hardware),
                "peaks": dict(figures.peaks),
                "peaks_all": dict(figures.peaks_all),
                "copy_gbps": figures.copy_gbps,
                "read_gbps": figures.read_gbps,
                "read_gbps_all": figures.read_gbps_all,
            }
        )
        write_atomic(path, content.model_dump_json(indent=2) + "\n")
        return True
    except (OSError, ValidationError) as error:
        _warn(path, f"{error}; the figures are not kept")
        return False


def measured(hardware: Hardware, *, directory: Path | None = None, refresh: bool = False) -> Hardware:
    """Return the machine with its peaks and bandwidths, from the cache or measured now (a few seconds).

    Parameters
    ----------
    hardware : Hardware
        The machine this process runs on.
    directory : Path, optional
        Cache folder; the user's cache folder when not given.
    refresh : bool
        Measure again even when figures are kept.

    Raises
    ------
    HardwareError
        If ``hardware`` is another machine than this one.
    """
    if hardware.fingerprint != host().fingerprint:
        raise HardwareError(f"{hardware.name} cannot be measured here: it is not this machine; use load('host')")
    if not refresh and (kept := read_peaks(hardware, directory)):
        return kept.on(hardware)
    path = cache_path(hardware, directory)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Held while measuring, too: two processes measuring at once would halve each other's figures.
        with FileLock(path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
            # Another process may have written it meanwhile; of damage we have warned already.
            if not refresh and (kept := read_peaks(hardware, directory, warn=False)):
                return kept.on(hardware)
            figures = peak.measure(hardware)
            if figures.disturbed:
                _warn(path, "other processes used the cores while measuring; peaks may be too low and are not kept")
            else:
                write_peaks(hardware, figures, directory)
            return figures.on(hardware)
    except (OSError, Timeout) as error:
        _warn(path, f"{error}; the figures are not kept")
        return peak.measure(hardware).on(hardware)


def _warn(path: Path, what: str) -> None:
    message = " ".join(f"measured figures in {path}: {what}".split())
    warnings.warn(message, RuntimeWarning, stacklevel=3)
