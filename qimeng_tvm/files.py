"""Files: written in one step (the old one or the new one, never half), TOML read, where the configuration is."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: What :func:`parse_toml` raises.
TomlError = tomllib.TOMLDecodeError


def config_path() -> Path:
    """Return where the configuration file is looked for."""
    import platformdirs  # noqa: PLC0415 (the command answers --help without it)

    return Path(platformdirs.user_config_dir("qimeng")) / "config.toml"


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML text says."""
    return tomllib.loads(text)


def write_atomic(path: Path, text: str) -> None:
    """Write text to a file; its folder is made if it is not there.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)  # mkstemp makes it readable to its owner alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
