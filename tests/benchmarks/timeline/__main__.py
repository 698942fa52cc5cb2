# SPDX-License-Identifier: Apache-2.0
"""Where the seconds of one command go, in all of its processes.

    python tests/benchmarks/timeline -- ray-embed run --source … --model …

Prints, for each process that did something worth 50 ms, what it did, from when to when.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LEAST = 0.05  # seconds


def main() -> int:
    command = sys.argv[sys.argv.index("--") + 1 :]
    program = Path(sys.executable).with_name(command[0])
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


def report(log: Path, began: float, ended: float) -> None:
    """Print what each process did, in the order of beginning."""
    print(f"{ended - began:.2f} s from beginning to end")
    processes: dict[str, list[tuple[float, float, str, str]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        process, begin, end, thread, what = line.split("\t")
        item = (float(begin) - began, float(end) - began, thread, what)
        processes.setdefault(process, []).append(item)
    for process, items in sorted(processes.items(), key=lambda pair: min(pair[1])):
        shown = [item for item in sorted(items) if item[1] - item[0] >= LEAST]
        if not shown:
            continue
        start = next((what for *_, what in items if what.startswith("start ")), "")
        print(f"\nprocess {process}: {start}")
        calls: dict[str, int] = {}
        for begin, end, thread, what in shown:
            calls[what] = calls.get(what, 0) + 1
            if calls[what] <= 3:
                print(f"  {begin:7.2f} … {end:7.2f}  {end - begin:6.2f} s  {what}  ({thread})")
        for what, count in calls.items():
            if count > 3:
                total = sum(end - begin for begin, end, _, name in shown if name == what)
                last = max(end for _, end, _, name in shown if name == what)
                print(f"  {what}: {count} times, {total:.2f} s in all, the last until {last:.2f}")


if __name__ == "__main__":
    sys.exit(main())
