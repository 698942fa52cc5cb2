# SPDX-License-Identifier: Apache-2.0
"""Where the seconds of one command go, in all of its processes.

    python tests/benchmarks/timeline -- ray-embed run --source … --model …

Prints, for each process that did something worth 50 ms, what it did, from when to when, and how
many CPU seconds its process took meanwhile. On a busy machine, only the latter can be compared.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

LEAST = 0.05  # seconds


def main() -> int:
    command = sys.argv[sys.argv.index("--") + 1 :]
    program = Path(sys.executable).parent / command[0]
    if program.exists():
        command[0] = str(program)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "timeline.tsv"
        here = str(Path(__file__).resolve().parent)
        above = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([here, *above]),
            "RAY_EMBED_TIMELINE": str(log),
        }
        began = time.time()
        code = subprocess.run(command, env=environment, check=False).returncode
        ended = time.time()
        report(log, began, ended)
    return code


@dataclass(frozen=True, order=True)
class Item:
    """Something that a process did, and what its process had computed until then."""

    begin: float
    end: float
    cpu_before: float
    cpu_after: float
    thread: str
    what: str

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def report(log: Path, began: float, ended: float) -> None:
    """Print what each process did, in the order of beginning."""
    print(f"{ended - began:.2f} s from beginning to end")
    processes: dict[str, list[Item]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        process, begin, end, before, after, thread, what = line.split("\t")
        times = (float(begin) - began, float(end) - began, float(before), float(after))
        processes.setdefault(process, []).append(Item(*times, thread, what))
    for process, items in sorted(processes.items(), key=lambda pair: min(pair[1])):
        shown = [item for item in sorted(items) if item.seconds >= LEAST]
        if not shown:
            continue
        start = next((item.what for item in items if item.what.startswith("start ")), "")
        computed = max(item.cpu_after for item in items)
        print(f"\nprocess {process}, {computed:.2f} s of CPU until its last line: {start}")
        print_items(shown)


def print_items(items: list[Item]) -> None:
    """Print the first three calls of each function, and the sum of the others."""
    calls: dict[str, int] = {}
    for item in items:
        calls[item.what] = calls.get(item.what, 0) + 1
        if calls[item.what] <= 3:
            computed = item.cpu_after - item.cpu_before
            print(
                f"  {item.begin:7.2f} … {item.end:7.2f}  {item.seconds:6.2f} s  "
                f"{computed:5.2f} s of CPU  {item.what}  ({item.thread})"
            )
    for what, count in calls.items():
        if count > 3:
            same = [item for item in items if item.what == what]
            total, last = sum(item.seconds for item in same), max(item.end for item in same)
            print(f"  {what}: {count} times, {total:.2f} s in all, the last until {last:.2f}")


if __name__ == "__main__":
    sys.exit(main())
