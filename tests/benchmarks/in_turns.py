# SPDX-License-Identifier: Apache-2.0
"""Sides that are compared, each in a process of its own, in turns; and what they take.

A script calls itself with `--side NAME` for a side, which imports all before the clock starts.
Memory is the most that a process had resident, imports and all.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import sides

Result = TypeVar("Result")


@dataclass(frozen=True)
class Taken:
    """The median of the seconds, and the largest peak in MB."""

    seconds: float
    peak: float


def measure(call: Callable[[], Result]) -> Result:
    """Call it in this process, print what it took, and give what it gives."""
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))
    return result


def side(script: str, name: str, *arguments: object) -> Taken:
    """Call a script for a side, and give what it took."""
    command = sides.script(script, "--side", name, *arguments)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return Taken(**json.loads(done.stdout.splitlines()[-1]))


def alternate(
    names: Sequence[str], rounds: int, measured: Callable[[str], Taken]
) -> dict[str, Taken]:
    """Measure the sides in turns, print all rounds, and give what each took."""
    taken: dict[str, list[Taken]] = {name: [] for name in names}
    for number in range(rounds):
        for name in sides.turns(names, number):
            taken[name].append(measured(name))
    found = {}
    for name, results in taken.items():
        seconds = [result.seconds for result in results]
        found[name] = Taken(statistics.median(seconds), max(result.peak for result in results))
        shown = " ".join(f"{one:.2f}" for one in seconds)
        print(
            f"{name:10} median {found[name].seconds:6.2f} s ({shown}), "
            f"peak RSS {found[name].peak:.0f} MB"
        )
    return found
