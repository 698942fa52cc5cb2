# SPDX-License-Identifier: Apache-2.0
"""Whether the memory of an extractor grows with the number of batches.

    python tests/benchmarks/actor_memory.py --work DIR [--batches 10000]

A tiny encoder, pictures of 32 px and batches of 8 make many batches in little time. The resident
memory (RSS) of the one extractor is sampled while it works; how many batches are done is read off
the parts that are there. The pictures are few, each linked to many names: they are read all the
same.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import sides
from corpus import make_jpegs
from machine import described
from processes import HERE, Tree, psutil
from rows import last_line, row, table

BATCH = 8
SHARD = 512
DISTINCT = 512
INTERVAL = 0.2  # seconds
SHARES = (0.1, 0.5, 1.0)

Sample = tuple[float, float]  # share of the batches that are done, MB


def link_pictures(work: Path, count: int) -> Path:
    """A folder of `count` names for a few pictures."""
    pictures = work / "images-32px"
    names = make_jpegs(pictures, DISTINCT, size=32)
    root = work / f"linked-{count}"
    if root.is_dir():
        return root
    unfinished = work / "linked.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for at in range(count):
        os.symlink(pictures / names[at % DISTINCT], unfinished / f"{at:07d}.jpg")
    return unfinished.rename(root)


def watch(command: list[str], out: Path, shards: int) -> list[Sample]:
    """Run the command; sample the memory of its extractor."""
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_suffix(".log")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, cwd=HERE, env=environment
        )
        tree = Tree(process.pid)
        samples = []
        extractor = None
        while process.poll() is None:
            if extractor is None or not extractor.is_running():
                tree.sample_memory()
                extractor = _extractor(tree)
            if extractor and (memory := _resident(extractor.pid)):
                samples.append((_parts(out) / shards, memory))
            time.sleep(INTERVAL)
    if process.returncode != 0:
        sys.exit(f"ray-embed ended with exit {process.returncode}; see {log}")
    return samples


def _extractor(tree: Tree) -> psutil.Process | None:
    for process in tree.alive():
        try:
            # Ray names a worker after what it runs.
            if "ray::Extractor" in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def _resident(pid: int) -> float | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else None


def _parts(out: Path) -> int:
    try:
        return sum(name.endswith(".parquet") for name in os.listdir(out / "features"))
    except FileNotFoundError:
        return 0


def at_share(samples: list[Sample], share: float) -> float:
    """The memory when that share of the batches is done: the median of the samples around."""
    working = [(done, memory) for done, memory in samples if done > 0]
    near = [memory for done, memory in working if abs(done - share) <= 0.03]
    nearest = min(working, key=lambda sample: abs(sample[0] - share))
    return statistics.median(near or [nearest[1]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="1,000 batches")
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    batches = 1000 if given.quick else given.batches
    records = batches * BATCH
    print(described())
    folder = link_pictures(work, records)
    out = work / "actor_memory" / "run"
    shutil.rmtree(out, ignore_errors=True)
    options = ["--batch-size", str(BATCH), "--shard-size", str(SHARD), "--actors", "1"]
    command = sides.ray_embed(folder, out, "models:tiny", options, "extract")
    began = time.perf_counter()
    samples = watch(command, out, -(-records // SHARD))
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    if not any(done for done, _ in samples):
        sys.exit("no extractor was seen while it worked")
    found = {share: at_share(samples, share) for share in SHARES}
    print(f"\n{batches} batches of {BATCH} in {seconds:.1f} s; done, MB:")
    for tenth in range(1, 11):
        print(f"  {tenth * 10:3} % {at_share(samples, tenth / 10):8.1f}")
    what = f"extractor's memory over {batches:,} batches"
    rows = [row(f"{what}: at {share:.0%}", None, mb, "MB") for share, mb in found.items()]
    growth = found[1.0] - found[0.1]
    rows.append(row(f"{what}: growth from 10 % on", None, growth, "MB"))
    share = 100 * growth / found[0.1]
    rows.append(row(f"{what}: the same, in per cent", "<= 5", share, "%"))
    print(f"\n{table(rows)}")
    print(last_line(rows))


if __name__ == "__main__":
    main()
