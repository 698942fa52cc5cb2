# SPDX-License-Identifier: Apache-2.0
"""How fast images are planned, and whether the memory for it grows with their number.

    python tests/benchmarks/planning.py [--work DIR] [--sizes 100000,300000,1000000]

Planning is all that is done with the records before the first shard: the folder is walked, or the
footers and headers of Parquet and tar files are read; the Parquet plan and its digest are written
to a temporary folder, and the plan is copied to the run folder. Image files are empty, as planning
never looks into them; they lie 1,000 to a folder, or all in one. Each size is planned by a process
of its own, right after the files were made or looked at: what the operating system knows about them
is in memory. The peak is that of the resident memory.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from machine import described
from processes import HERE
from rows import Row, last_line, row, table

SIZES = (100_000, 300_000, 1_000_000)
A_FOLDER = 1000
A_FILE = 10_000
CONTENT = bytes(100)  # of an image in a file of many
SPEED = ">= 50000"
GROWTH = "<= 100"


@dataclass(frozen=True)
class Planned:
    """What planning a folder took."""

    files: float
    walked: float  # seconds until the plan was written
    copied: float  # seconds
    start_mb: float  # before planning, with all that is imported
    peak_mb: float

    @property
    def seconds(self) -> float:
        return self.walked + self.copied

    @property
    def speed(self) -> float:
        return self.files / self.seconds


def make_files(root: Path, files: int, a_folder: int) -> None:
    """Make empty files, some to a folder."""
    for start in range(0, files, a_folder):
        folder = root / f"{start // a_folder:05d}" if a_folder < files else root
        folder.mkdir(exist_ok=True)
        for at in range(start, min(start + a_folder, files)):
            # Not in the order of their names, as little as any folder is.
            os.close(os.open(f"{folder}/{at * 7919 % 10**8:08d}.jpg", os.O_CREAT | os.O_WRONLY))


def make_parquet(root: Path, files: int) -> None:
    """Write Parquet files of tiny images, with row groups as Hugging Face writes them."""
    for start in range(0, files, A_FILE):
        rows = range(start, min(start + A_FILE, files))
        images = [{"bytes": CONTENT, "path": f"{row:08d}.jpg"} for row in rows]
        table = pa.table({"image": images, "label": [row % 10 for row in rows]})
        pq.write_table(table, root / f"{start:08d}.parquet", row_group_size=1000)


def make_tars(root: Path, files: int) -> None:
    """Write tars of tiny images and their classes."""
    for start in range(0, files, A_FILE):
        with tarfile.open(root / f"{start:08d}.tar", "w") as tar:
            for row in range(start, min(start + A_FILE, files)):
                for ending, content in (("jpg", CONTENT), ("cls", str(row % 10).encode())):
                    member = tarfile.TarInfo(f"{row:08d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


LAYOUTS: dict[str, Callable[[Path, int], None]] = {
    "1,000 a folder": lambda root, files: make_files(root, files, A_FOLDER),
    "all in one folder": lambda root, files: make_files(root, files, files),
    "Parquet": make_parquet,
    "tar": make_tars,
}


def make_source(work: Path, files: int, layout: str) -> Path:
    """Make the images in a layout, unless they are there."""
    root = work / f"planning-{files}-{layout.replace(' ', '-').replace(',', '')}"
    if root.is_dir():
        # Known to the operating system again, as after making them.
        for folder, _, names in os.walk(root):
            for name in names:
                os.stat(f"{folder}/{name}")
        return root
    unfinished = work / "planning.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    LAYOUTS[layout](unfinished, files)
    return unfinished.rename(root)


def plan_here(root: Path, out: Path) -> Planned:
    """Plan the source in this process."""
    from ray_embed import RunConfig, planning
    from ray_embed.extraction import prepare  # noqa: F401 - what a run has imported when it plans
    from ray_embed.sources.open import open_sources
    from ray_embed.storage.filesystem import Folder

    start = _memory("VmRSS")
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        scratch = Folder.open(temporary)
        began = time.perf_counter()
        sources = open_sources(RunConfig(sources={"images": str(root)}, model="none.keras"))
        made = planning.make_plan(sources, {}, scratch, shard_size=None, batch_size=32, limit=None)
        planned = time.perf_counter()
        planning.copy_records(made, scratch, Folder.open(str(out)))
        copied = time.perf_counter()
    assert made.records is not None
    return Planned(made.records, planned - began, copied - planned, start, _memory("VmHWM"))


def _memory(which: str) -> float:
    """The resident memory of this process now (VmRSS) or at its peak (VmHWM), in MB."""
    found = re.search(rf"^{which}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    if not found:
        sys.exit(f"/proc/self/status says nothing of {which}")
    return int(found[1]) * 1024 / 1e6


def plan_apart(work: Path, files: int, layout: str) -> Planned:
    """Plan a source in a process of its own."""
    root = make_source(work, files, layout)
    out = work / "planning-run"
    command = [sys.executable, __file__, "--here", str(root), str(out)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    planned = Planned(*(float(number) for number in done.stdout.split()))
    if planned.files != files:
        sys.exit(f"{root}: {planned.files:.0f} records were planned of {files} files")
    return planned


def rows_of(layout: str, found: dict[int, Planned]) -> list[Row]:
    """The rows of the table for one layout."""
    smallest, largest = min(found), max(found)
    rows = [
        row(f"planning {files:,} images, {layout}: {what}", target, number, unit)
        for files, planned in found.items()
        for what, target, number, unit in (
            ("speed", SPEED if files == largest else None, planned.speed, "files/s"),
            ("peak", None, planned.peak_mb, "MB"),
        )
    ]
    growth = found[largest].peak_mb - found[smallest].peak_mb
    what = f"planning {layout}: growth of the peak, {smallest:,} to {largest:,} files"
    return [*rows, row(what, GROWTH, growth, "MB")]


@contextmanager
def folder_for(work: Path | None) -> Iterator[Path]:
    """Give the folder to work in: a temporary one if none is asked for."""
    if work:
        work.mkdir(parents=True, exist_ok=True)
        yield work.resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, help="for all that is written; else a temporary one")
    parser.add_argument("--sizes", default=",".join(str(size) for size in SIZES))
    parser.add_argument("--layouts", default="/".join(LAYOUTS), help="some of the layouts")
    parser.add_argument("--quick", action="store_true", help="100,000 files and fewer")
    parser.add_argument("--here", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        planned = plan_here(*given.here)
        print(planned.files, planned.walked, planned.copied, planned.start_mb, planned.peak_mb)
        return
    sizes = (10_000, 100_000) if given.quick else [int(n) for n in given.sizes.split(",")]
    print(described())
    rows = []
    with folder_for(given.work) as work:
        for layout in given.layouts.split("/"):
            found = {}
            for files in sorted(sizes):
                found[files] = planned = plan_apart(work, files, layout)
                print(
                    f"{files:>9,} files, {layout}: planned in {planned.walked:.2f} s, copied in "
                    f"{planned.copied:.2f} s, {planned.speed:,.0f} files/s; memory before "
                    f"{planned.start_mb:.0f} MB, at its peak {planned.peak_mb:.0f} MB",
                    flush=True,
                )
            rows += rows_of(layout, found)
    print(f"\n{table(rows)}")
    print(last_line(rows))


if __name__ == "__main__":
    main()
