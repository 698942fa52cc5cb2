# SPDX-License-Identifier: Apache-2.0
"""What the driver bears: a million shards, given to extractors that do nothing.

    python tests/benchmarks/driver.py --work DIR [--shards 1000000]

The driver's part of a run, which is all that does not get faster with more actors: the plan's
outline, the parts that are there, the calls, the counting. It is measured over a stretch of shards
and extrapolated; the extractors answer at once. Each case is a process of its own, so that its
memory (RSS) is its own.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sides
from machine import described
from processes import HERE, psutil
from rows import Row, last_line, row, table

from ray_embed import planning
from ray_embed.config import RunConfig
from ray_embed.encoders.spec import Encoder, EncoderSpec, Output
from ray_embed.planning import Plan, SplitPlan
from ray_embed.storage import layout, manifest, part_files
from ray_embed.storage.filesystem import Folder

SHARDS, STRETCH, THERE, READ = 1_000_000, 40_000, 200_000, 20_000
QUICK = 20  # a part of the above
RECORDS = 512
STEPS = 20
PROCESSES = 4
MB = 1e6

Sample = tuple[int, float, float]  # shards, seconds, MB


class EnoughError(Exception):
    """The stretch is measured."""


class Idle:
    """An extractor that does nothing."""

    def ready(self, job: Any) -> Any:
        from ray_embed.extraction.messages import Ready

        return Ready(16, "")

    def extract(self, shard: Any, images: Any = None, runs: Any = (0,)) -> Any:
        from ray_embed.extraction.messages import ShardResult

        result = ShardResult(
            number=shard.number,
            split=shard.split.name,
            rows=RECORDS,
            rejects={},
            brightest=255,
            turned=0,
            reduced=0,
            passed_over=0,
            is_uniform=False,
            values=None,
            finished=time.time(),
        )
        return [result]


class Pool:
    """As much of a session as extracting asks for."""

    def __init__(self, count: int) -> None:
        import ray

        from ray_embed.runtime.actors import Worker
        from ray_embed.runtime.resources import Resources

        self.resources = Resources(1, 0.0)
        self.pool = self
        # Many extractors share a process: the driver does the same for them.
        processes = min(count, PROCESSES)
        remote = ray.remote(Idle).options(num_cpus=0, max_concurrency=2 * -(-count // processes))
        actors = [remote.remote() for _ in range(processes)]
        ray.get([actor.__ray_ready__.remote() for actor in actors])
        turns = itertools.cycle(actors)
        self._workers = [Worker(lambda: next(turns)) for _ in range(count)]

    def fill(self, useful: int | None) -> list[Any]:
        return self._workers

    def dismiss_waiting(self) -> None:
        pass


def resident() -> float:
    """The memory of this process, in MB."""
    return float(psutil.Process().memory_info().rss / MB)


def outline(shards: int) -> Plan:
    """A plan of two splits of files."""
    split = SplitPlan(
        ordinal=0,
        name="valid",
        root="/data/images/valid",
        label_type="string",
        extras=("camera", "night"),
        shard_size=RECORDS,
        shards_per_file=256,
        records=shards // 2 * RECORDS,
        digest="0" * 64,
    )
    rest = (shards - shards // 2) * RECORDS
    both = (split, SplitPlan(**{**vars(split), "ordinal": 1, "split": "test", "records": rest}))
    return Plan(both, "string", split.extras)


def encoder() -> Encoder:
    """An encoder that nobody runs."""
    return Encoder(
        spec=EncoderSpec(model="none:none", folder="."),
        image_shape=(96, 96, 3),
        outputs=(Output(layer="gap", column="feature", pool="gap", dimension=512),),
        engine="folded",
        architecture="",
        weights_digest="",
        graph=bytes(1 << 20),
        input_name="x",
        output_names=("y",),
        weights=(),
    )


def extracting(folder: Folder, shards: int, stretch: int, actors: int) -> dict[str, Any]:
    """Extract a stretch of what is missing; gives samples over it."""
    import ray

    from ray_embed.core.console import Progress
    from ray_embed.extraction import driver
    from ray_embed.extraction.prepare import PreparedRun, Target
    from ray_embed.sources.file_images import FileReader

    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    samples: list[Sample] = []
    processor: list[float] = []

    class Counting(Progress):
        done = 0

        def advance(self, records: int) -> None:
            super().advance(records)
            self.done += 1
            if self.done == 1 or self.done % (stretch // STEPS) == 0:
                samples.append((self.done, time.perf_counter(), resident()))
                processor.append(time.process_time())
            if self.done == stretch:
                raise EnoughError

    driver.Progress = Counting  # type: ignore[misc]
    pool: Any = Pool(actors)
    config = RunConfig(sources={"valid": "/data"}, model="none:none", shard_timeout=600)
    before = resident()
    began = time.perf_counter()
    target = Target(folder.path, folder, None)
    prepared = PreparedRun(
        config=config,
        target=target,
        plan=planning.load(folder),
        encoder=encoder(),
        identity={"model": "none"},
        dataset_readers={},
        readers=(FileReader(""), FileReader("")),
    )
    assert prepared.plan.shards == shards
    with contextlib.suppress(EnoughError):
        found = driver.find_finished(prepared)
        driver.extract_missing(config, [prepared], [found], pool)
    ray.shutdown()
    (_, first, _), (_, last, _) = samples[0], samples[-1]
    return {
        "until_first": first - began,
        "rate": (samples[-1][0] - 1) / (last - first),
        "processor": (processor[-1] - processor[0]) / (samples[-1][0] - 1),
        "before": before,
        "samples": [(count, seconds - began, memory) for count, seconds, memory in samples],
    }


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a call, and by how much the peak of the memory rose."""
    before = resident()
    began = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - began
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / MB
    del kept
    return {"seconds": seconds, "grown": peak - before, "peak": peak}


def status(path: str) -> Any:
    """What `ray-embed status` does."""
    from ray_embed.runs.status import read_status

    found = read_status(path)
    if found.problems:
        sys.exit(found.problems[0])
    return found


def empty_parts(work: Path, shards: int, there: int) -> Folder:
    """A run folder in which so many shards are done, by the names of their parts."""
    folder = _begun(work / f"parts-{there}", shards)
    features = Path(folder.join(layout.FEATURES))
    if not features.is_dir():
        unfinished = features.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for number in range(there):
            (unfinished / f"part-{number:08d}.parquet").touch()
        unfinished.rename(features)
    return folder


def linked_parts(work: Path, there: int) -> Folder:
    """A run folder of so many parts, each the same file: they are read all the same."""
    folder = _begun(work / f"linked-{there}", there)
    features = Path(folder.join(layout.FEATURES))
    if not features.is_dir():
        part_files.write_part(folder, part(), part_files.Owner("none", "none"), RECORDS)
        real = Path(folder.path) / "real.parquet"
        (features / "part-00000000.parquet").rename(real)
        for number in range(there):
            os.symlink(real, features / f"part-{number:08d}.parquet")
    return folder


def part() -> part_files.Part:
    """A part as a shard gives it."""
    index = pa.array(range(RECORDS), pa.int64())
    keys = pa.array([f"valid/{at:06d}.jpg" for at in range(RECORDS)])
    values = pa.array(np.zeros(RECORDS * 8, np.float32))
    features = pa.FixedSizeListArray.from_arrays(values, 8)
    rows = pa.table({"index": index, "key": keys, "label": keys, "feature": features})
    thumbnails = pa.table([index, pa.nulls(RECORDS, pa.binary())], part_files.THUMBNAIL_SCHEMA)
    return part_files.Part(0, rows, part_files.REJECT_SCHEMA.empty_table(), thumbnails)


def _begun(path: Path, shards: int) -> Folder:
    path.mkdir(parents=True, exist_ok=True)
    folder = Folder.open(str(path))
    manifest.write_run(folder, {"fingerprint": "none"}, "0")
    planning.save(folder, outline(shards))
    return folder


def case(name: str, work: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Measure one case, in this process."""
    part_of = QUICK if given.quick else 1
    shards, stretch = given.shards, given.stretch // part_of
    there, read = THERE // part_of, READ // part_of
    match name:
        case "done":
            folder = empty_parts(work, shards, there)
            return timed(lambda: part_files.FinishedShards(folder))
        case "status":
            folder = linked_parts(work, read)
            return timed(lambda: status(folder.path))
        case "going on":
            return extracting(empty_parts(work, shards, there), shards, stretch // 4, given.actors)
        case _:
            return extracting(empty_parts(work, shards, 0), shards, stretch, given.actors)


def apart(name: str, arguments: list[str]) -> dict[str, Any]:
    """Measure one case in a process of its own."""
    command = sides.script("driver.py", *arguments, "--case", name)
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=HERE, env=environment)
    if told.returncode != 0:
        sys.exit(f"{name} ended with exit {told.returncode}")
    found: dict[str, Any] = json.loads(told.stdout.strip().splitlines()[-1])
    return found


def growth(samples: list[Sample]) -> tuple[float, float]:
    """MB that the memory rose by from a quarter of the stretch to its end, and MB a shard."""
    quarter = [s for s in samples if s[0] <= samples[-1][0] / 4][-1]
    line = statistics.linear_regression(
        [count for count, _, _ in samples if count >= quarter[0]],
        [memory for count, _, memory in samples if count >= quarter[0]],
    )
    return samples[-1][2] - quarter[2], line.slope


def rows_of(shards: int, given: argparse.Namespace, arguments: list[str]) -> Iterator[Row]:
    """Measure all cases."""
    part_of = QUICK if given.quick else 1
    measure = functools.partial(apart, arguments=arguments)
    for name, label in (("extract", "nothing done"), ("going on", f"{THERE // part_of:,} done")):
        found = measure(name)
        print(f"\n{label}: first shard after {found['until_first']:.2f} s; shards, s, MB:")
        for count, seconds, memory in found["samples"]:
            print(f"  {count:8} {seconds:8.2f} {memory:8.1f}")
        grown, slope = growth(found["samples"])
        last = found["samples"][-1][2]
        yield row(f"driver, {label}: shards a second", ">= 1000", found["rate"], "shards/s")
        yield row(f"driver, {label}: until the first shard", None, found["until_first"], "s")
        share = 100 * grown / (last - grown)
        yield row(f"driver, {label}: growth from a quarter on", "<= 5", share, "%")
        yield row(
            f"driver, {label}: memory after {shards:,} shards", "<= 1000",
            last + max(slope, 0) * (shards - found["samples"][-1][0]), "MB",
        )  # fmt: skip
    for name, count in (("done", THERE // part_of), ("status", READ // part_of)):
        found = measure(name)
        print(f"\n{name} of {count:,} parts: {found}")
        times = shards / count
        memory = found["peak"] + found["grown"] * (times - 1)
        yield row(f"{name} of {shards:,} parts", None, found["seconds"] * times, "s")
        yield row(f"{name} of {shards:,} parts: memory", "<= 1000", memory, "MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--shards", type=int, default=SHARDS, help="planned")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--stretch", type=int, default=STRETCH, help="shards that are done")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the stretches")
    parser.add_argument("--case", help="one case, in this process; tells what it measured as JSON")
    given = parser.parse_args()
    work = given.work.resolve() / "driver"
    if given.case:
        print(json.dumps(case(given.case, work, given)))
        return
    print(described())
    arguments = ["--work", str(given.work.resolve()), "--shards", str(given.shards)]
    arguments += ["--actors", str(given.actors), "--stretch", str(given.stretch)]
    arguments += ["--quick"] if given.quick else []
    rows = list(rows_of(given.shards, given, arguments))
    shutil.rmtree(work)
    print(f"\n{table(rows)}")
    print(last_line(rows))


if __name__ == "__main__":
    main()
