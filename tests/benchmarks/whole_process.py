# SPDX-License-Identifier: Apache-2.0
"""The loop of a notebook, a Ray Data job and `ray-embed run`, each as a whole process.

    python tests/benchmarks/whole_process.py --work DIR [--images 512,4096,16384] [--rounds 3]
    python tests/benchmarks/whole_process.py --work DIR --sides loop,ray-embed,daft
    python tests/benchmarks/whole_process.py --work DIR --images 512 --busy 4
    python tests/benchmarks/whole_process.py --work DIR -- --engine tensorflow --actors 1

Everything a user waits for is in the time: starting Python, importing, building the model, the
features, the checkpoint. (The jobs of Ray Data and Daft make no checkpoint and no thumbnails; Daft
is no default side, as it has to be installed first.) Options after `--` are handed on to ray-embed.
With `--busy N`, N processes that compute all the time run beside each side, as on a shared machine.
The sides take turns, and the one that begins changes from round to round. Images a second once
warm: see rates.py. CPU seconds, those of all processes, are less disturbed by others than seconds.

Every round is printed, ratios are those of the medians. Exit 0: done, and the features of all
rounds agree within 1e-5*|g| + 1e-5*max|g|, g being the loop's, and for Ray Data those of
plain_call.py, which says why; 1: they do not, or a process failed. Those of Daft are not compared:
it decodes JPEG files by another library, to other pixels.

DIR gets images-N/, whole_process/ and growth.png, which shows how time and memory grow with N.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import agreement
import growth
import rates
import sides
from corpus import make_jpegs
from machine import described
from processes import Measured, measure
from rows import Row, last_line, ratio, row, table

LOOP, OURS, RAY_DATA = SIDES = ("loop", "ray-embed", "ray-data")
DAFT = "daft"
FASTER = {4096: ">= 2.0", 16384: ">= 3.5"}  # times as fast as the loop
FASTER_WARM = {16384: ">= 5.0"}
FASTER_THAN_RAY_DATA = {16384: ">= 1.7"}
FASTER_THAN_DAFT = {512: ">= 1.0"}
SLOWER = {512: "<= 1.0"}  # times as long as the loop
SLOWER_BESIDE_OTHERS = "<= 1.5"
MORE_CPU = {512: "<= 1.3"}  # times the CPU seconds of the loop


class Compared:
    """What all rounds with one number of images gave.

    Args:
        images: how many.
        names: the sides.
        busy: the number of busy processes beside each side.
    """

    def __init__(self, images: int, names: Sequence[str], busy: int = 0) -> None:
        self.images = images
        self.busy = busy
        self.names = names
        self.measured: list[Measured] = []
        self.warm: dict[str, list[float | None]] = {name: [] for name in names}
        self.distances: dict[str, list[float]] = {OURS: [], RAY_DATA: []}

    def run(self, folder: Path, work: Path, number: int, options: Sequence[str]) -> None:
        """Do one round; what the sides wrote is compared and deleted."""
        outs = {name: work / f"{self.images}-{name}-{number + 1}" for name in self.names}
        for name in sides.turns(self.names, number):
            shutil.rmtree(outs[name], ignore_errors=True)
            with busy_processes(self.busy):
                done = measure(name, sides.command(name, folder, outs[name], options), outs[name])
            print(f"{outs[name].name}: {done.seconds:.2f} s", file=sys.stderr)
            self.measured.append(done)
            if name == LOOP:
                self.warm[name].append(done.said()["once_warm"])
            elif name == OURS:
                self.warm[name].append(rates.of_run(outs[name]))
        self._compare(outs, folder, work)
        for out in outs.values():
            shutil.rmtree(out)

    def _compare(self, outs: dict[str, Path], folder: Path, work: Path) -> None:
        """Take in how far the features are from those of the loop, and of a plain call."""
        if LOOP in outs and OURS in outs:
            loop = agreement.read_loop(outs[LOOP])
            self._take(OURS, lambda: agreement.distance(OURS, outs[OURS], loop))
        if RAY_DATA in outs:
            plain = work / f"{self.images}-plain-call"
            if not self.distances[RAY_DATA]:
                measure("plain call", sides.script("plain_call.py", folder, plain), plain)
            some, out = agreement.read_loop(plain), outs[RAY_DATA]
            compare = agreement.distance_of_some
            self._take(RAY_DATA, lambda: compare(RAY_DATA, out, self.images, some))

    def _take(self, name: str, distance: Callable[[], float]) -> None:
        try:
            self.distances[name].append(distance())
        except ValueError as error:
            print(f"{name}, {self.images} images: {error}", file=sys.stderr)
            self.distances[name].append(math.inf)

    def rounds(self) -> str:
        """Every process, and the medians."""
        columns = f"{'seconds':>9} {'CPU s':>8} {'img/s':>8} {'RSS MB':>8} {'PSS MB':>8}"
        head = f"{'':20} {columns} {'procs':>6}  left"
        lines = [f"{self.images} images", head]
        lines += [self._line(Path(m.folder).name, [m]) for m in self.measured]
        lines.append("-" * len(head))
        lines += [self._line(name, self._of(name)) for name in self.names]
        for name, values in self.warm.items():
            if any(values):
                shown = ", ".join("-" if value is None else f"{value:.1f}" for value in values)
                lines.append(f"{name}, img/s once warm, by round: {shown}")
        for name, values in self.distances.items():
            shown = ", ".join(f"{value:.3g}" for value in values)
            lines.append(f"{name}, largest difference of features by round, 1 is allowed: {shown}")
        return "\n".join(lines)

    def _of(self, name: str) -> list[Measured]:
        return [m for m in self.measured if m.name == name]

    def _line(self, name: str, rows: Sequence[Measured]) -> str:
        seconds = statistics.median(m.seconds for m in rows)
        cpu = statistics.median(m.cpu_seconds for m in rows)
        rss = statistics.median(m.peak_rss_mb for m in rows)
        shares = [m.peak_pss_mb for m in rows if m.peak_pss_mb is not None]
        pss = f"{statistics.median(shares):8.0f}" if shares else f"{'-':>8}"
        processes, left = max(m.processes for m in rows), max(m.left_behind for m in rows)
        return (
            f"{name:20} {seconds:9.2f} {cpu:8.2f} {self.images / seconds:8.1f} {rss:8.0f} {pss} "
            f"{processes:6} {left:5}"
        )

    def _seconds(self, name: str) -> float | None:
        times = [m.seconds for m in self._of(name)]
        return statistics.median(times) if times else None

    def _cpu(self, name: str) -> float | None:
        times = [m.cpu_seconds for m in self._of(name)]
        return statistics.median(times) if times else None

    def _warm(self, name: str) -> float | None:
        known = [value for value in self.warm.get(name, ()) if value is not None]
        return statistics.median(known) if known else None

    def rows(self) -> list[Row]:
        """The rows of the table."""
        n, ours, loop = self.images, self._seconds(OURS), self._seconds(LOOP)
        rows = []
        if self.busy:
            what = (
                f"{n:,} images beside {self.busy} busy processes: ray-embed's time over the loop's"
            )
            rows.append(row(what, SLOWER_BESIDE_OTHERS, ratio(ours, loop)))
        elif n in SLOWER:
            what = f"{n:,} images, whole process: ray-embed's time over the loop's"
            rows.append(row(what, SLOWER[n], ratio(ours, loop)))
        else:
            what = f"{n:,} images, whole process: the loop's time over ray-embed's"
            rows.append(row(what, FASTER.get(n), ratio(loop, ours)))
        what = f"{n:,} images, whole process: ray-embed's CPU seconds over the loop's"
        rows.append(row(what, MORE_CPU.get(n), ratio(self._cpu(OURS), self._cpu(LOOP))))
        warm = ratio(self._warm(OURS), self._warm(LOOP))
        what = f"{n:,} images: img/s once warm over the loop's once warm"
        if n not in SLOWER:
            rows.append(row(what, FASTER_WARM.get(n), warm))
        if RAY_DATA in self.names:
            what = f"{n:,} images, whole process: Ray Data's time over ray-embed's"
            over = ratio(self._seconds(RAY_DATA), ours)
            rows.append(row(what, FASTER_THAN_RAY_DATA.get(n), over))
        if DAFT in self.names:
            what = f"{n:,} images, whole process: Daft's time over ray-embed's"
            rows.append(row(what, FASTER_THAN_DAFT.get(n), ratio(self._seconds(DAFT), ours)))
        for name, values in self.distances.items():
            if values:
                what = f"{n:,} images: {name}'s largest difference of features, all rounds"
                rows.append(row(what, "<= 1", max(values), "of the allowed"))
        return rows

    def agree(self) -> bool:
        """Whether all features were those that were expected."""
        return all(value <= 1 for values in self.distances.values() for value in values)


@contextlib.contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Let processes compute all the time."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", default="512,4096,16384", help="numbers of images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--work", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside each side")
    parser.add_argument("--quick", action="store_true", help="256 and 512 images, one round")
    parser.add_argument("options", nargs="*", help="after --: options for ray-embed")
    given = parser.parse_args()
    work = given.work.resolve()
    names = given.sides.split(",")
    numbers = [256, 512] if given.quick else [int(n) for n in given.images.split(",")]
    print(described())
    compared = [Compared(n, names, given.busy) for n in sorted(numbers)]
    for each in compared:
        folder = work / f"images-{each.images}"
        make_jpegs(folder, each.images)
        for number in range(1 if given.quick else given.rounds):
            each.run(folder, work / "whole_process", number, given.options)
        print(f"\n{each.rounds()}", flush=True)
    growth.draw(work / "growth.png", {each.images: each.measured for each in compared})
    rows = [row for each in compared for row in each.rows()]
    print(f"\n{table(rows)}\n\ndrawn: {work / 'growth.png'}")
    print(last_line(rows))
    return int(not all(each.agree() for each in compared))


if __name__ == "__main__":
    sys.exit(main())
