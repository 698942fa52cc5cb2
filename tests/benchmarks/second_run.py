# SPDX-License-Identifier: Apache-2.0
"""What the second run of a Python process takes, as in a notebook, and whether memory grows.

    python tests/benchmarks/second_run.py --work DIR [--images 512] [--rounds 3]
    python tests/benchmarks/second_run.py --work DIR --images 32 --model tiny --runs 50

Each round is one process that calls `ray_embed.run` for a few folders in turn: N images, N images
again, 4N, and N. What a run takes beyond encoding is the time of the second run less N times the
time of an image, which is that of the third run less the second one, over 3N. Models are saved
files, so that no run draws new weights.

With `--runs`, the process embeds the N images that often. Its memory and that of its extractor is
taken after each run: what they have allocated (anonymous, or swapped out). Pages of libraries are
left out, because they count as a process's own (USS) as soon as no other process has them mapped.
The allocator keeps freed memory in arenas, and which thread has which arena is chance. So processes
have two arenas here; otherwise memory goes up and down by 10 % from run to run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import sides
from corpus import make_jpegs
from machine import described
from processes import HERE, psutil
from rows import Row, last_line, row, table

WARM_UP = 10  # runs in which caches fill
COMPARED = 15  # runs whose median is compared, because that of single runs varies
BEYOND = "<= 3.0"
GROWTH = "<= 10"  # per cent


def embed(model: Path, folders: Sequence[Path], out: Path) -> None:
    """Embed folders one after the other in this process, and print what each run took."""
    import ray_embed

    for number, folder in enumerate(folders):
        config = ray_embed.RunConfig(
            sources={"valid": folder}, model=model, out=out / str(number), overwrite=True
        )
        began = time.perf_counter()
        ray_embed.run(config)
        seconds = time.perf_counter() - began
        shutil.rmtree(out / str(number))
        print(json.dumps({"seconds": seconds, "memory": memory()}), flush=True)


def memory() -> list[float]:
    """The MB that this process and each extractor have allocated."""
    here = psutil.Process()
    workers = [
        process
        for process in here.children(recursive=True)
        # Ray names a worker after what it runs.
        if "ray::Extractor" in " ".join(process.cmdline())
    ]
    processes = [here, *sorted(workers, key=lambda process: process.pid)]
    return [
        sum(mapping.anonymous + mapping.swap for mapping in process.memory_maps()) / 1e6
        for process in processes
    ]


def save_model(name: str, path: Path) -> None:
    """Save a model of models.py."""
    import models

    getattr(models, name)().save(path)


def measure(
    model: Path, folders: Sequence[Path], out: Path, environment: Mapping[str, str] = os.environ
) -> list[dict]:  # type: ignore[type-arg]
    """Embed the folders in a process of its own, and give what each run took."""
    shutil.rmtree(out, ignore_errors=True)
    command = sides.script("second_run.py", "--side", "embed", model, out, *folders)
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=HERE, env=environment
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def measure_memory(model: Path, folder: Path, runs: int, out: Path) -> list[list[float]]:
    """Embed a folder that often, and give the MB of the processes after each run."""
    environment = os.environ | {"MALLOC_ARENA_MAX": "2"}
    return [run["memory"] for run in measure(model, [folder] * runs, out, environment)]


def speed_rows(images: int, rounds: Sequence[Sequence[float]]) -> list[Row]:
    """The rows for the seconds of the runs of each round: N images, N, 4N, N."""
    first, second, large, again = (statistics.median(times) for times in zip(*rounds, strict=True))
    warm = (second + again) / 2
    beyond = warm - (large - warm) / 3
    what = f"{images:,} images in one Python process"
    return [
        row(f"{what}: the first run", None, first, "s"),
        row(f"{what}: a later run", None, warm, "s"),
        row(f"{what}: a later run, beyond encoding", BEYOND, beyond, "s"),
    ]


def memory_rows(memories: Sequence[Sequence[float]]) -> list[Row]:
    """The rows for the memory of the processes after each run."""
    rows = []
    for what, values in zip(("driver", "extractor"), zip(*memories, strict=True), strict=True):
        begun, ended = map(statistics.median, (values[WARM_UP:][:COMPARED], values[-COMPARED:]))
        name = f"memory of the {what} over {len(values)} runs"
        rows.append(row(f"{name}: at the end", None, ended, "MB"))
        growth = 100 * (ended - begun) / begun
        rows.append(row(f"{name}: growth from run {WARM_UP} on", GROWTH, growth, "%"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, help="folder for everything written")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="mobilenet", help="a function of models.py")
    parser.add_argument("--runs", type=int, default=0, help="the runs over which memory is taken")
    parser.add_argument("--quick", action="store_true", help="64 images, one round")
    parser.add_argument("--side", choices=("embed", "save"), help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side == "embed":
        embed(given.arguments[0], given.arguments[2:], given.arguments[1])
        return
    if given.side == "save":
        save_model(given.model, given.arguments[0])
        return
    work = given.work.resolve()
    images, rounds = (64, 1) if given.quick else (given.images, given.rounds)
    print(described())
    folder, large = work / f"images-{images}", work / f"images-{4 * images}"
    make_jpegs(folder, images)
    make_jpegs(large, 4 * images)
    model = work / f"{given.model}.keras"
    if not model.is_file():
        command = sides.script("second_run.py", "--side", "save", "--model", given.model, model)
        subprocess.run(command, check=True, cwd=HERE)
    out = work / "second_run"
    if given.runs:
        memories = measure_memory(model, folder, given.runs, out)
        for number, values in enumerate(memories):
            print(f"run {number + 1}: " + ", ".join(f"{value:.0f} MB" for value in values))
        rows = memory_rows(memories)
    else:
        times = []
        for number in range(rounds):
            found = measure(model, [folder, folder, large, folder], out)
            times.append([run["seconds"] for run in found])
            print(f"round {number + 1}: " + ", ".join(f"{time:.2f} s" for time in times[-1]))
        rows = speed_rows(images, times)
    print(f"\n{table(rows)}")
    print(last_line(rows))


if __name__ == "__main__":
    main()
