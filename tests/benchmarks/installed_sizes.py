# SPDX-License-Identifier: Apache-2.0
"""What ray_embed and each of its extras add to an environment: packages, megabytes, import time.

    python tests/benchmarks/installed_sizes.py [--extras onnx,torch]

Packages are found by following the requirements of the installed distributions, and sizes are those
of their files. An extra that is not installed here is skipped. Import times are the medians of
three processes, without that of starting Python.
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from machine import described
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rows import Row, last_line, row, table

BASE = "base"
# What is imported where an extra is used; the base without its engines for other extras.
IMPORTS = {
    BASE: ("tensorflow", "ray", "pyarrow"),
    "bench": ("matplotlib",),
    "formats": ("imagecodecs", "pillow_heif", "pydicom", "tifffile"),
    "hf": ("datasets",),
    "hub": ("keras_hub",),
    "onnx": ("onnx", "onnxruntime"),
    "open-clip": ("open_clip",),
    "openvino": ("openvino",),
    "pandas": ("pandas",),
    "plots": ("matplotlib",),
    "ray": ("ray.data",),
    "timm": ("timm",),
    "torch": ("torch",),
    "transformers": ("transformers", "torch"),
}
PACKAGE = "ray_embed"
ROUNDS = 3


def find_packages(extra: str | None) -> frozenset[str]:
    """Return the names of the distributions that ray_embed needs, with an extra or without.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(PACKAGE, extra or "")]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        if name != PACKAGE:
            found.add(name)
        waiting += _list_requirements(name, wanted)
        if wanted:
            waiting.append((name, ""))
    return frozenset(found)


def _list_requirements(name: str, extra: str) -> Iterator[tuple[str, str]]:
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None:
            applies = not extra
        else:
            applies = requirement.marker.evaluate({"extra": extra})
            # What applies without the extra is counted without it.
            applies = applies and not (extra and requirement.marker.evaluate({"extra": ""}))
        if applies:
            needed = canonicalize_name(requirement.name).replace("-", "_")
            for each in ("", *requirement.extras):
                yield (PACKAGE if needed == PACKAGE else requirement.name, each)


def measure_size(name: str) -> int:
    """Return the bytes of the files of a distribution."""
    distribution = metadata.distribution(name)
    files = (Path(str(distribution.locate_file(file))) for file in distribution.files or ())
    return sum(file.stat().st_size for file in files if file.is_file())


def measure_import(names: tuple[str, ...]) -> float:
    """Return the seconds that importing modules takes in a process of its own."""
    return _time(f"import {', '.join(names)}") - _time("pass")


def _time(code: str) -> float:
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def list_rows(extras: list[str]) -> Iterator[Row]:
    """Yield the rows of the base and of each extra."""
    base = find_packages(None)
    for extra in [BASE, *extras]:
        try:
            if extra not in (BASE, *metadata.metadata(PACKAGE).get_all("Provides-Extra", [])):
                raise metadata.PackageNotFoundError(f"{PACKAGE}[{extra}]")
            packages = base if extra == BASE else find_packages(extra) - base
            size = sum(measure_size(name) for name in packages)
        except metadata.PackageNotFoundError as error:
            print(f"{extra}: skipped, {error} is not installed", file=sys.stderr)
            continue
        added = "" if extra == BASE else " more"
        yield row(f"{extra}: packages{added}", None, float(len(packages)), "")
        yield row(f"{extra}: size{added}", None, size / 1e6, "MB")
        yield row(
            f"{extra}: import {', '.join(IMPORTS[extra])}",
            None,
            measure_import(IMPORTS[extra]),
            "s",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = sorted(IMPORTS.keys() - {BASE})
    parser.add_argument("--extras", default=",".join(names), help="names of extras")
    given = parser.parse_args()
    print(described())
    rows = list(list_rows(given.extras.split(",") if given.extras else []))
    print(f"\n{table(rows)}")
    print(last_line(rows))


if __name__ == "__main__":
    main()
