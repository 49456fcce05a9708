"""A file of lines that survives ``kill -9``: whole lines or nothing, one writer at a time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qimeng_tvm.errors import RecordError

LOCK_SECONDS = 20.0


@contextmanager
def locked(folder: Path, timeout: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the database folder's lock.

    Raises
    ------
    RecordError
        If another process keeps it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=timeout)
        lock.acquire()
    except Timeout:
        raise RecordError(
            f"the tuning database {folder} is locked by another process for over {timeout:g} s: wait for it, "
            "or use another folder"
        ) from None
    except OSError as error:
        raise RecordError(
            f"cannot write to the tuning database {folder} ({error.strerror or error}): choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def append(path: Path, lines: Sequence[bytes]) -> None:
    """Append whole lines and have them on disk before returning; the caller holds the lock.

    Raises
    ------
    RecordError
        If they cannot be written whole (then none of them is).
    """
    data = b"".join(line + b"\n" for line in lines)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, data) != len(data):
                os.ftruncate(descriptor, size)
                raise OSError("no room left")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RecordError(
            f"cannot write to {path} ({error.strerror or error}): free space or choose another folder"
        ) from error


def repair(path: Path) -> bool:
    """Drop a last line that was cut off (a writer was killed); True when there was one. The caller holds the lock.

    Raises
    ------
    RecordError
        If the file cannot be read or mended.
    """
    try:
        with open(path, "r+b") as stream:
            keep = _whole(stream.read())
            if keep is None:
                return False
            stream.truncate(keep)
            os.fsync(stream.fileno())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RecordError(f"cannot mend {path} ({error.strerror or error}): make it writable") from error
    _warn_cut(path)
    return True


def read(path: Path) -> list[bytes]:
    """Return the whole lines; a last one that is cut off is dropped with a warning (and mended by the next writer).

    Raises
    ------
    RecordError
        If the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(f"cannot read {path} ({error.strerror or error})") from error
    keep = _whole(data)
    if keep is not None:
        _warn_cut(path)
        data = data[:keep]
    return data.splitlines()


def _whole(data: bytes) -> int | None:
    """Length of the whole lines, or None when all of them are."""
    return None if not data or data.endswith(b"\n") else data.rfind(b"\n") + 1


def _warn_cut(path: Path) -> None:
    warnings.warn(
        f"{path}: the last line was cut off (a tuning run was killed) and is dropped", RuntimeWarning, stacklevel=4
    )
