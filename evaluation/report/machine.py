"""The machine that a report is made on: its processor by name, and the versions of packages."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from evaluation.report.page import Facts

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "deepspeed", "transformers", "timm", "ray", "webdataset")
_CPUINFO = Path("/proc/cpuinfo")
# Flags of the kernel for the instructions that decide the speed of a matrix product.
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}


def hardware() -> Facts:
    """Commit, machine and package versions of this process."""
    rows = {
        "commit": commit(),
        "machine": f"{cpu()}, {platform.system()}",
        "python": platform.python_version(),
    }
    return Facts("What ran", rows | {name: version(name) for name in _PACKAGES})


def commit() -> str:
    """The commit of the code that runs, with ``-dirty`` where it was changed."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        git = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # a container without git
        return "unknown: there is no git"
    return git.stdout.strip() or "not a git clone"


def cpu(info: str | None = None) -> str:
    """The CPU in words: its name, its cores, and its instruction sets for matrix products.

    Args:
        info: content of Linux's ``/proc/cpuinfo``; None: this machine's. Where there is none, the
            name is the architecture, and no instruction sets are given.
    """
    if info is None:
        info = _CPUINFO.read_text() if _CPUINFO.is_file() else ""
    fields: dict[str, str] = {}
    for line in info.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features", "")).split()
    sets = ", ".join(words for flag, words in _INSTRUCTIONS.items() if flag in flags)
    name = fields.get("model name", "").replace("(R)", "").replace("(TM)", "").strip()
    known = f"{name or platform.machine()}, {os.cpu_count()} cores"
    return f"{known}; {sets}" if sets else known
