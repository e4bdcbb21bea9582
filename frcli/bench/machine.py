"""The machine that a measurement was made on, and how much memory this process has. Names of hosts, users and folders
are left out: a result may be published as it is.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from frcli.sources.devices import physical_cores, total_memory

_LIBRARIES = ("llama-cpp-python", "onnxruntime", "onnxruntime-gpu", "numpy")


def describe() -> dict[str, Any]:
    """Processor, cores, memory (bytes), system, and the versions of frcli and of the libraries that do the work.

    ``load`` is the system's load average over the last minute: above 0, something else was running, too.
    """
    from frcli import __version__
    from frcli.sources.llama import library

    described: dict[str, Any] = {
        "cpu": processor(),
        "cores": physical_cores(),
        "processors": os.cpu_count(),
        "memory": total_memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "frcli": __version__,
    }
    described |= versions()
    described["llama.cpp"] = library().llama_print_system_info().decode("utf-8", "replace").strip()
    if hasattr(os, "getloadavg"):
        described["load"] = round(os.getloadavg()[0], 2)
    return {key: value for key, value in described.items() if value is not None}


def versions() -> dict[str, str]:
    """Versions of the libraries that do the work, those that are installed."""
    found = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        return _said_by("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


def resident_memory() -> int | None:
    """Bytes of this process that are in memory now, pages of mapped files among them; None where nobody says."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    said = _said_by("ps", "-o", "rss=", "-p", str(os.getpid()))
    return int(said) * 1024 if said.isdigit() else None


def _said_by(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
