# SPDX-License-Identifier: Apache-2.0
"""The loop of a notebook against `ray-embed run`, each as a whole process.

    python tests/benchmarks/whole_process.py --images 4096 --rounds 3 --work DIR
    python tests/benchmarks/whole_process.py --images 1024 --rounds 1 --work DIR --only loop
    python tests/benchmarks/whole_process.py --work DIR -- --engine tensorflow --actors 1

Everything a user waits for is in the time: starting Python, importing, building the model, the
features, the checkpoint. Options after `--` are handed on to ray-embed. The two take turns, and
the one that begins changes from round to round. Memory is that of the process and all its
descendants, sampled: RSS added up (pages that processes share count once for each of them) and,
where the system tells, PSS (shared pages are divided among those that share them).

Exit 0: done, and the features agree within 1e-5*|g| + 1e-6*max|g|, g being the loop's; 1: they do
not, or a process failed; 2: ray-embed is not there.

DIR gets images-N/, loop-k/, run-k/ and what the processes said, loop-k.log and run-k.log; k goes
on from what is there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from corpus import make_jpegs

try:
    import psutil  # type: ignore[import-untyped,unused-ignore]
except ModuleNotFoundError:
    import ray  # noqa: F401  (puts the psutil it brings on the path)

    psutil = importlib.import_module("psutil")

HERE = Path(__file__).resolve().parent
RELATIVE, ABSOLUTE = 1e-5, 1e-6
INTERVAL = 0.5  # seconds between two looks at the memory
PATIENCE = 10.0  # seconds that processes left behind have for ending themselves


@dataclass(frozen=True)
class Measured:
    """What one whole process took."""

    name: str
    folder: str
    seconds: float
    peak_rss_mb: float
    peak_pss_mb: float | None
    processes: int  # most at the same time
    left_behind: int  # descendants still there some seconds after the end


class Tree:
    """A process and its descendants, also those that a descendant left to init."""

    def __init__(self, pid: int) -> None:
        self._seen: set[psutil.Process] = {psutil.Process(pid)}
        self.rss = self.pss = 0
        self.processes = 0

    def alive(self) -> list[psutil.Process]:
        """Those that run now."""
        for process in list(self._seen):
            try:
                self._seen.update(process.children())
            except psutil.Error:
                self._seen.discard(process)
        return [process for process in self._seen if _runs(process)]

    def sample(self) -> None:
        """Take the memory of the moment into the peaks."""
        parents = _children_by_parent()
        rss = pss = count = 0
        waiting = list(self._seen)
        while waiting:
            process = waiting.pop()
            for child in parents.get(process.pid, ()):
                if child not in self._seen:
                    self._seen.add(child)
                    waiting.append(child)
            try:
                if not _runs(process):
                    continue
                rss += process.memory_info().rss
                pss += _pss(process.pid)
                count += 1
            except (psutil.Error, OSError):
                continue
        self.rss, self.pss = max(self.rss, rss), max(self.pss, pss)
        self.processes = max(self.processes, count)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _children_by_parent() -> dict[int, list[psutil.Process]]:
    """One walk over the process table, whatever the size of the tree."""
    children: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            children.setdefault(process.ppid(), []).append(process)
        except psutil.Error:
            continue
    return children


def _pss(pid: int) -> int:
    """Bytes, shared pages divided among those that share them; 0 where it is not told."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, PermissionError):
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def measure(name: str, command: Sequence[str], folder: Path) -> Measured:
    """Run the command to its end in this script's folder; SystemExit where it fails."""
    log = folder.parent / f"{folder.name}.log"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with log.open("wb") as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, cwd=HERE, env=environment
        )
        tree = Tree(process.pid)
        try:
            while True:
                tree.sample()
                try:
                    process.wait(INTERVAL)
                    break
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            process.terminate()
            process.wait()
            raise
        seconds = time.perf_counter() - start
    if process.returncode != 0:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        print("\n".join(tail), file=sys.stderr)
        print(f"{name} ended with exit {process.returncode}; all of it: {log}", file=sys.stderr)
        raise SystemExit(1)
    deadline = time.monotonic() + PATIENCE
    while (left := tree.alive()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return Measured(
        name,
        str(folder),
        seconds,
        tree.rss / 1e6,
        tree.pss / 1e6 if tree.pss else None,
        tree.processes,
        len(left),
    )


def read_loop(folder: Path) -> tuple[list[str], np.ndarray]:
    """Keys and features of the loop, by key."""
    keys = json.loads((folder / "keys.json").read_text(encoding="utf-8"))
    return keys, np.load(folder / "features.npy")


def read_run(folder: Path) -> tuple[list[str], np.ndarray]:
    """Keys and features of a run folder, by key; ValueError where rows are not what they say."""
    parts = sorted((folder / "features").glob("*.parquet"))
    if not parts:
        raise ValueError(f"no parts in {folder / 'features'}")
    keys: list[str] = []
    indices: list[int] = []
    blocks: list[np.ndarray] = []
    for part in parts:
        rows: Any = pq.read_table(part, columns=["index", "key", "feature"])
        if rows.num_rows == 0:
            continue
        keys += rows["key"].to_pylist()
        indices += rows["index"].to_pylist()
        values = rows["feature"].combine_chunks().flatten().to_numpy()
        blocks.append(values.reshape(rows.num_rows, -1))
    if indices != list(range(len(indices))):
        raise ValueError(f"{folder}: the indices of the rows are not 0, 1, 2, …")
    if not blocks:
        raise ValueError(f"{folder}: no rows")
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [keys[i] for i in order], np.concatenate(blocks)[order]


def violation(features: np.ndarray, expected: np.ndarray) -> float:
    """The largest |f-g| in units of what is allowed: at most 1 is agreement."""
    if features.shape != expected.shape:
        raise ValueError(f"shapes differ: {features.shape} and {expected.shape}")
    f, g = features.astype(np.float64), expected.astype(np.float64)
    allowed = RELATIVE * np.abs(g) + ABSOLUTE * np.abs(g).max()
    difference = np.abs(f - g)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = np.where(difference == 0, 0.0, difference / allowed)
    return float(np.nan_to_num(units, nan=np.inf, posinf=np.inf).max())


def agree(run: Path, loop: Path) -> bool:
    """Compare the two, say how far they are from each other."""
    try:
        keys, features = read_run(run)
        expected_keys, expected = read_loop(loop)
        if keys != expected_keys:
            different = sorted(set(keys) ^ set(expected_keys))[:3]
            raise ValueError(f"{len(keys)} and {len(expected_keys)} keys, differing: {different}")
        units = violation(features, expected)
    except ValueError as error:
        print(f"{run.name} against {loop.name}: {error}")
        return False
    largest = np.abs(features.astype(np.float64) - expected).max() / np.abs(expected).max()
    print(
        f"{run.name} against {loop.name}: largest difference {units:.3g} of what is allowed, "
        f"{largest:.2g} of the largest value: {'agree' if units <= 1 else 'DO NOT AGREE'}"
    )
    return units <= 1


def machine() -> dict[str, str]:
    """What the figures depend on."""
    processor = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        processor = found[1] if found else processor
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = {
        "processor": processor,
        "cores": str(cores),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
    }
    for package in ("tensorflow", "keras", "ray", "openvino", "pyarrow", "ray-embed"):
        try:
            told[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            told[package] = "-"
    return told


def table(measured: Sequence[Measured], images: int) -> str:
    """Every process, the medians, and the ratio where both have run."""
    head = f"{'':12} {'seconds':>9} {'img/s':>8} {'RSS MB':>8} {'PSS MB':>8} {'procs':>6}  left"
    lines = [head]

    def line(name: str, rows: Sequence[Measured]) -> str:
        seconds = statistics.median(m.seconds for m in rows)
        rss = statistics.median(m.peak_rss_mb for m in rows)
        shares = [m.peak_pss_mb for m in rows if m.peak_pss_mb is not None]
        pss = f"{statistics.median(shares):8.0f}" if shares else f"{'-':>8}"
        processes, left = max(m.processes for m in rows), max(m.left_behind for m in rows)
        return (
            f"{name:12} {seconds:9.2f} {images / seconds:8.1f} {rss:8.0f} {pss} "
            f"{processes:6} {left:5}"
        )

    lines += [line(Path(m.folder).name, [m]) for m in measured]
    lines.append("-" * len(head))
    groups = {name: [m for m in measured if m.name == name] for name in ("loop", "ray-embed")}
    lines += [line(name, rows) for name, rows in groups.items() if rows]
    if all(groups.values()):
        loop, run = (statistics.median(m.seconds for m in rows) for rows in groups.values())
        lines.append(f"loop / ray-embed: {loop / run:.2f} (medians of the seconds)")
    return "\n".join(lines)


def following(work: Path) -> int:
    """The first k that no loop-k or run-k has yet."""
    taken = [
        int(found[1])
        for path in work.iterdir()
        if (found := re.fullmatch(r"(?:loop|run)-(\d+)", path.name))
    ]
    return max(taken, default=0) + 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--only", choices=("loop", "ray-embed"))
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("options", nargs="*", help="after --: options for ray-embed")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    command = Path(sys.executable).with_name("ray-embed")
    names = [name for name in ("loop", "ray-embed") if given.only in (None, name)]
    if "ray-embed" in names and not command.exists():
        print(f"{command} is not there: install the package, or use --only loop", file=sys.stderr)
        return 2
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    folder = work / f"images-{given.images}"
    make_jpegs(folder, given.images)
    told = machine()
    first = following(work)

    measured: list[Measured] = []
    for k in range(first, first + given.rounds):
        for name in names if (k - first) % 2 == 0 else reversed(names):
            if name == "loop":
                out = work / f"loop-{k}"
                script = str(HERE / "section1_loop.py")
                line = [sys.executable, script, str(folder), str(out)]
            else:
                out = work / f"run-{k}"
                line = [str(command), "run", "--source", f"valid={folder}"]
                line += ["--model", "models:mobilenet", "--image-size", "96,96"]
                line += ["--out", str(out), *given.options]
            measured.append(measure(name, line, out))
            print(f"{out.name}: {measured[-1].seconds:.2f} s", file=sys.stderr)

    print(f"{given.images} pictures, {given.rounds} rounds")
    print(", ".join(f"{name} {value}" for name, value in told.items()))
    print(table(measured, given.images))
    fine = True
    if len(names) == 2:
        for k in range(first, first + given.rounds):
            fine &= agree(work / f"run-{k}", work / f"loop-{k}")
    if given.json:
        processes = [asdict(m) for m in measured]
        figures = {"images": given.images, "machine": told, "processes": processes, "agree": fine}
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
