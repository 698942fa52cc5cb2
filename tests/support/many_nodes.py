# SPDX-License-Identifier: Apache-2.0
"""Start clusters of many nodes on one machine, with pretended GPUs, and runs on them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from support.pictures import make_folder
from support.sample_runs import read_parts, read_results

HERE = Path(__file__).parent
RECORDS, SHARD, BATCH = 240, 4, 4
# Ray's number for preemption.
SPOT = 2
# With these settings, a dead node is noticed after two seconds instead of fifteen.
QUICK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


@contextmanager
def start_cluster(*nodes, **head):
    """Start a head and nodes, each given as (CPUs, GPUs), and yield Ray's Cluster."""
    from ray.cluster_utils import Cluster

    given = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=given | head)
    try:
        for cpus, gpus in nodes:
            add(cluster, cpus, gpus)
        yield cluster
    finally:
        address = cluster.address
        cluster.shutdown()
        # Otherwise any later `ray.init()` would try to join this cluster.
        current = Path("/tmp/ray/ray_current_cluster")
        with suppress(FileNotFoundError):
            if current.read_text() == address:
                current.unlink()


def add(cluster, cpus, gpus):
    """Add a node to the cluster."""
    return cluster.add_node(num_cpus=cpus, num_gpus=gpus)


def kill(cluster, node):
    """Kill a node without warning, as a power cut does."""
    process = node.all_processes["raylet"][0].process
    process.kill()
    process.wait()
    cluster.remove_node(node, allow_graceful=False)


def drain(cluster, node, seconds):
    """Announce that a node will be taken away."""
    from ray._raylet import GcsClient

    deadline = int((time.time() + seconds) * 1000)
    accepted, why = GcsClient(address=cluster.address).drain_node(
        node.node_id, SPOT, "taken back", deadline
    )
    assert accepted, why


@dataclass(frozen=True)
class Batch:
    """An encoded batch: its time, node, GPUs, process, and a digest of its pixels."""

    when: float
    node: str
    gpus: str
    process: int
    what: str


@dataclass
class Running:
    """A run in its own process."""

    folder: Path
    process: subprocess.Popen

    def read_batches(self):
        """Return the batches that were encoded so far."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        fields = [line.split() for line in lines if line.count(" ") == 4]
        return [Batch(float(f[0]), f[1], f[2], int(f[3]), f[4]) for f in fields]

    def wait_until(self, holds, what):
        """Wait until a condition on the batches is true."""
        end = time.monotonic() + 240
        while not holds(self.read_batches()):
            assert self.process.poll() is None, self.read_output()
            assert time.monotonic() < end, f"never: {what}\n{self.read_output()}"
            time.sleep(0.2)

    def wait_for_batches(self, node, count=1):
        """Wait until a node has encoded a number of batches."""
        self.wait_until(
            lambda batches: sum(batch.node == node.node_id for batch in batches) >= count,
            f"{count} batches on {node.node_id}",
        )

    def finish(self):
        """Let the run continue at full speed, wait for its end, and return the exit code."""
        (self.folder / "fast").touch()
        return self.process.wait(400)

    def read_output(self):
        return (self.folder / "said").read_text()

    @property
    def done(self):
        return len(list((self.folder / "run" / "features").glob("part-*.parquet")))

    def count_repeated_batches(self):
        """Return how many batches were encoded more than once."""
        return sum(count > 1 for count in Counter(b.what for b in self.read_batches()).values())


@contextmanager
def start_run(folder, address, *words, records=RECORDS):
    """Start a run, and stop it at the end of the block."""
    prepare(folder, records)
    with open(folder / "said", "w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray_embed", *command(*words), "--address", address],
            cwd=folder,
            stdout=said,
            stderr=said,
        )
    try:
        yield Running(folder, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def command(*words):
    if "--source" not in words:
        words = ("--source", "valid=pictures", *words)
    usual = ["--model", "paced:encoder", "--image-size", "16,16"]
    usual += ["--engine", "tensorflow", "--batch-size", BATCH, "--shard-size", SHARD]
    return [*map(str, ["run", *usual, "--cpus-per-actor", 1, "--out", "run", *words])]


def prepare(folder, records=RECORDS):
    folder.mkdir(exist_ok=True)
    if not (folder / "pictures").exists():
        make_folder(folder / "pictures", {"a": records // 2, "b": records - records // 2})
    shutil.copy(HERE / "paced.py", folder)


def run_undisturbed(folder, *words, records=RECORDS):
    """Do the same run on a Ray of its own, and return the content of its files by name."""
    prepare(folder, records)
    calm = {name: value for name, value in os.environ.items() if not name.startswith("PACE")}
    done = subprocess.run(
        [sys.executable, "-m", "ray_embed", *command("--actors", 1, *words)],
        cwd=folder,
        env=calm,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return read_results(folder / "run")


def assert_complete(run, expected, records=RECORDS):
    """Check that a run finishes, and that its files have exactly the expected content."""
    assert run.finish() == 0, run.read_output()
    assert "Traceback" not in run.read_output()
    index = read_parts(run.folder / "run")["index"].to_pylist()
    assert index == list(range(records))
    found = read_results(run.folder / "run")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
