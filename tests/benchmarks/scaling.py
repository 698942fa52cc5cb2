# SPDX-License-Identifier: Apache-2.0
"""Images a second over the number of nodes, and what would break first with many more.

    python tests/benchmarks/scaling.py --work DIR [--nodes 1,2,4,8] [--seconds 40]

Each number of nodes is a cluster of Ray on this machine, a pretended GPU a node, and a run of the
command line on it. The encoder sleeps a second a batch, as if a GPU computed; all else is real:
reading, decoding, thumbnails, parts. It is measured from when each actor has done a shard, by what
they tell of their batches; then the run is interrupted. Beside that, the processor time of the
driver, of Ray's processes on the head (GCS and raylet), and of its process on each node (raylet).

Then the driver is given shards by extractors that do nothing, as many as in `--gpus`, which tells
what one shard costs it; and from that, by arithmetic, what a billion images on so many GPUs take,
and what breaks first. What a GPU does a second is not measured: it is given.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driver import apart
from machine import described
from processes import HERE, psutil
from rows import last_line, row, table

sys.path[:0] = [str(HERE.parent), str(HERE.parent / "cluster")]

NODES = (1, 2, 4, 8)
PACE, BATCH, SHARD = 1.0, 64, 512
PATIENCE = 600.0  # for all actors to start
FILES = 64
RECORDS = 1_000_000_000
DIMENSION, THUMBNAIL = 2048, 8_000  # numbers, bytes
# Files listed and planned a second, and bytes merged a second: planning.py, and reducing.py with a
# million rows of 512 numbers in 4.4 s, on two cores and a local disk.
PLANNED, MERGED = 130_000, 1_000_000 * 512 * 4 / 4.4


@dataclass(frozen=True)
class Load:
    """What a run does a second: images, and seconds of processor time by who takes them."""

    nodes: int
    images: float
    driver: float
    head: float
    raylet: float  # each
    actor: float  # each

    def line(self, one: Load) -> str:
        """Say it, beside what one node does."""
        return (
            f"{self.nodes:5}  {self.images:8.1f}  {self.images / self.nodes / one.images:10.1%}  "
            f"{self.driver:6.3f}  {self.head:6.3f}  {self.raylet:6.3f}  {self.actor:6.3f}"
        )


def listing(work: Path, records: int) -> Path:
    """A listing of so many records of a few pictures."""
    from support.pictures import make_folder

    if not (work / "pictures").exists():
        make_folder(work / "pictures", {"a": FILES})
    rows = (f"pictures/a/{at % FILES:04d}.png,a{at % 10}" for at in range(records))
    path = work / f"{records}.csv"
    path.write_text("\n".join(["path,label", *rows, ""]))
    return path


def measured(nodes: int, seconds: float, work: Path) -> Load:
    """Run on so many nodes for so long."""
    from support.many_nodes import start_cluster

    folder = work / f"nodes-{nodes}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(HERE.parent / "cluster" / "paced.py", folder)
    records = round(nodes * BATCH / PACE * (seconds + PATIENCE / 2))
    os.environ |= {"PACE": str(PACE), "PACE_LOG": str(folder / "log")}
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    words = ["extract", "--source", f"valid={listing(work, records)}", "--model", "paced:encoder"]
    words += ["--image-size", "16,16", "--engine", "tensorflow", "--batch-size", str(BATCH)]
    words += ["--shard-size", str(SHARD), "--cpus-per-actor", "1", "--out", "run"]
    with start_cluster(*[(1, 1)] * nodes) as cluster, open(folder / "said", "w") as said:
        run = subprocess.Popen(
            [sys.executable, "-m", "ray_embed", *words, "--address", cluster.address],
            cwd=folder,
            stdout=said,
            stderr=said,
        )
        try:
            _until_all_work(run, folder, nodes)
            head = [_process(cluster.head_node, "gcs_server")]
            raylets = [_process(node, "raylet") for node in cluster.worker_nodes]
            groups = {
                "driver": [psutil.Process(run.pid), *psutil.Process(run.pid).children()],
                "head": [*head, _process(cluster.head_node, "raylet")],
                "raylet": raylets,
                "actor": [psutil.Process(pid) for pid in _batches(folder)],
            }
            before, began = {name: _seconds(group) for name, group in groups.items()}, time.time()
            time.sleep(seconds)
            took = {name: _seconds(group) - before[name] for name, group in groups.items()}
            ended = time.time()
            rates = [_rate(times, began, ended) for times in _batches(folder).values()]
        finally:
            run.send_signal(signal.SIGINT)
            run.wait(60)
    share = {name: took[name] / (ended - began) for name in took}
    share |= {name: share[name] / nodes for name in ("raylet", "actor")}
    return Load(nodes, sum(rates), **share)


def _until_all_work(run: Any, folder: Path, nodes: int) -> None:
    end = time.monotonic() + PATIENCE
    # One has built the encoder before, and then waited; so each is to be in its second shard.
    enough = SHARD // BATCH + 4
    while sum(len(times) >= enough for times in _batches(folder).values()) < nodes:
        if run.poll() is not None or time.monotonic() > end:
            sys.exit((folder / "said").read_text())
        time.sleep(0.5)


def _batches(folder: Path) -> dict[int, list[float]]:
    """When each process has encoded its batches."""
    found = defaultdict(list)
    if (folder / "log").exists():
        for line in (folder / "log").read_text().splitlines():
            when, _, _, process, _ = line.split()
            found[int(process)].append(float(when))
    return found


def _rate(times: list[float], began: float, ended: float) -> float:
    within = [when for when in times if began <= when <= ended]
    return BATCH * (len(within) - 1) / (within[-1] - within[0])


def _process(node: Any, kind: str) -> Any:
    return psutil.Process(node.all_processes[kind][0].process.pid)


def _seconds(processes: Iterable[Any]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def arithmetic(gpus: int, rate: float, load: Load, a_shard: float) -> str:
    """What a billion images take, from what was measured here and what a GPU does."""
    wanted, most = gpus * rate, 1 / a_shard
    size = SHARD
    while wanted / size > most / 2:
        size *= 2
    head = load.head / load.nodes
    features, written = DIMENSION * 4, DIMENSION * 4 + THUMBNAIL
    lines = [
        f"{RECORDS:,} images on {gpus} GPUs that do {rate:,.0f} images a second each:",
        f"  {wanted:,.0f} images a second, {RECORDS / wanted / 60:,.0f} minutes",
        "driver",
        f"  {SHARD} records a shard: {wanted / SHARD:,.0f} shards a second of {a_shard * 1e3:.2f} "
        f"ms each, {wanted / SHARD * a_shard:.2f} seconds a second of one core",
        f"  at most {most:,.0f} shards a second: {most * SHARD:,.0f} images, "
        f"{most * SHARD / rate:,.0f} such GPUs",
        f"  --shard-size {size}: {wanted / size * a_shard:.2f} seconds a second",
        "Ray",
        f"  on the head {load.head:.3f} seconds a second with {load.nodes} nodes; if all of it "
        f"grows with them, {head * gpus / 8:.2f} with {gpus // 8}, {head * gpus:.2f} with {gpus}",
        f"  on each node {load.raylet:.3f}",
        "storage",
        f"  {DIMENSION} numbers and a thumbnail a record: {wanted * written / 1e9:.1f} GB a "
        f"second, {RECORDS * written / 1e12:.1f} TB",
        f"  {2 * RECORDS / SHARD:,.0f} files, {2 * wanted / SHARD:,.0f} a second; with {size} "
        f"records a shard {2 * RECORDS / size:,.0f}",
        "before and after",
        f"  planning, in one process: {RECORDS / PLANNED / 3600:.1f} hours",
        f"  merging {RECORDS * features / 1e12:.1f} TB: {RECORDS * features / MERGED / 3600:.1f} "
        "hours in one process, which the other extractors share",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--nodes", default=",".join(map(str, NODES)))
    parser.add_argument("--seconds", type=float, default=40.0, help="measured, each")
    parser.add_argument("--gpus", type=int, default=256, help="of the arithmetic")
    parser.add_argument("--rate", type=float, default=4100.0, help="images a second a GPU")
    given = parser.parse_args()
    work = given.work.resolve() / "scaling"
    work.mkdir(parents=True, exist_ok=True)
    print(described())
    print(f"\nseconds of processor time a second; a GPU would do {BATCH / PACE:.0f} img/s")
    print("nodes     img/s  of n × one  driver    head  raylet   actor")
    loads: list[Load] = []
    for nodes in map(int, given.nodes.split(",")):
        loads.append(measured(nodes, given.seconds, work))
        print(loads[-1].line(loads[0]), flush=True)
    one, most = loads[0], loads[-1]
    cost = apart("extract", ["--work", str(work), "--actors", str(given.gpus), "--stretch", "8000"])
    print(f"\n{arithmetic(given.gpus, given.rate, most, cost['processor'])}\n")
    times = most.nodes / one.nodes
    rows = [
        row(
            f"{most.nodes} nodes over {one.nodes}", f">= {0.95 * times:g}", most.images / one.images
        ),
        row(f"driver with {most.nodes} nodes", None, most.driver, "s/s"),
        row(f"driver, a shard with {given.gpus} actors", None, cost["processor"] * 1e3, "ms"),
        row(f"driver with {given.gpus} actors", None, cost["rate"], "shards/s"),
    ]
    shutil.rmtree(work)
    print(table(rows))
    print(last_line(rows))


if __name__ == "__main__":
    main()
