# SPDX-License-Identifier: Apache-2.0
"""Runs a command to its end and measures its time, and what all its processes take together.

Both are those of the process and its descendants, sampled. Memory: RSS added up (pages that
processes share count once for each of them) and, where the system tells, PSS (shared pages are
divided among those that share them). CPU seconds: what each process had taken when it was last
seen, so a tenth of a second for each process may be missing.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import psutil  # type: ignore[import-untyped,unused-ignore]
except ModuleNotFoundError:
    import ray  # noqa: F401  (puts the psutil it brings on the path)

    psutil = importlib.import_module("psutil")

HERE = Path(__file__).resolve().parent
INTERVAL = 0.1  # seconds between two looks at the CPU seconds
LOOKS = 5  # at the CPU seconds, for one at the memory, which takes longer
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
    log: str  # the file of what it said
    cpu_seconds: float  # of all processes

    def said(self) -> dict[str, Any]:
        """The JSON object of its last line."""
        lines = Path(self.log).read_text(errors="replace").strip().splitlines()
        return dict(json.loads(lines[-1]))


class Tree:
    """A process and its descendants, also those that a descendant left to init."""

    def __init__(self, pid: int) -> None:
        self._seen: set[psutil.Process] = {psutil.Process(pid)}
        self._cpu: dict[psutil.Process, float] = {}
        self.rss = self.pss = 0
        self.processes = 0

    @property
    def cpu_seconds(self) -> float:
        """What all processes had taken when they were last seen."""
        return sum(self._cpu.values())

    def alive(self) -> list[psutil.Process]:
        """Those that run now."""
        for process in list(self._seen):
            try:
                self._seen.update(process.children())
            except psutil.Error:
                self._seen.discard(process)
        return [process for process in self._seen if _runs(process)]

    def sample_cpu(self) -> None:
        """Remember what the known processes have taken so far."""
        for process in self._seen:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            self._cpu[process] = times.user + times.system

    def sample_memory(self) -> None:
        """Find new processes, and take the memory of the moment into the peaks."""
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
    """Run the command to its end in this script's folder.

    Args:
        name: of the side.
        command: what to run.
        folder: that it writes; what it says goes to `folder`.log.

    Raises:
        SystemExit: it fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with log.open("wb") as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, cwd=HERE, env=environment
        )
        tree = Tree(process.pid)
        try:
            for number in itertools.count():
                if number % LOOKS == 0:
                    tree.sample_memory()
                tree.sample_cpu()
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
        tree.sample_cpu()
        time.sleep(INTERVAL)
    return Measured(
        name,
        str(folder),
        seconds,
        tree.rss / 1e6,
        tree.pss / 1e6 if tree.pss else None,
        tree.processes,
        len(left),
        str(log),
        tree.cpu_seconds,
    )
