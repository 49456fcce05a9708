"""How fast one instruction is by LLVM's scheduling model of a core, where ``llvm-mca`` is installed.

Models differ from machines (LLVM 14 has one 256-bit multiply-add started a cycle on Zen 3, which starts two), so this
stands in only where nobody has written down what the manual says.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache

_SECONDS = 20.0
_NAMES = ("llvm-mca", *(f"llvm-mca-{version}" for version in range(22, 13, -1)))


def modelled(asm: str, triple: str, cpu: str) -> str:
    """Return the rate and latency of one instruction, in words; empty where they are not known.

    Parameters
    ----------
    asm : str
        One line as LLVM's assembler reads it: ``vfmadd231ps %zmm0, %zmm1, %zmm2``.
    triple, cpu : str
        As LLVM names the machine.
    """
    tool = next((found for name in _NAMES if (found := shutil.which(name))), None)
    return _modelled(tool, asm, triple, cpu) if tool is not None and asm else ""


@cache
def _modelled(tool: str, asm: str, triple: str, cpu: str) -> str:
    command = [tool, f"-mtriple={triple}", f"-mcpu={cpu}", "-json"]
    try:
        done = subprocess.run(
            command, input=f"{asm}\n", capture_output=True, text=True, check=False, timeout=_SECONDS
        )  # fmt: skip
        # A core that this LLVM does not know is a warning, and the answer that of another one.
        if done.returncode or "not a recognized processor" in done.stderr:
            return ""
        region = json.loads(done.stdout[done.stdout.index("{") :])["CodeRegions"][0]
        (one,) = region["InstructionInfoView"]["InstructionList"]
        latency, apart = float(one["Latency"]), float(one["RThroughput"])
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError):
        return ""
    if apart <= 0:
        return ""
    rate = f"{1 / apart:.3g} started a cycle" if apart <= 1 else f"one started every {apart:.3g} cycles"
    return f"{rate}, latency {latency:.3g} (LLVM's model of {cpu}, not measured)"
