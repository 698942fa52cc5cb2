# SPDX-License-Identifier: Apache-2.0
"""What the figures depend on: the machine and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from processes import psutil


def machine() -> dict[str, str]:
    """What the figures depend on."""
    processor = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        processor = found[1] if found else processor
    except OSError:
        pass
    told = {
        "processor": processor,
        "cores": str(threads()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
    }
    for package in ("tensorflow", "keras", "ray", "openvino", "pyarrow", "ray-embed"):
        try:
            told[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            told[package] = "-"
    return told


def described() -> str:
    """The same in one line."""
    return ", ".join(f"{name} {value}" for name, value in machine().items())


def threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
