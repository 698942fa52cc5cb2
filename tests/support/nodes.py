# SPDX-License-Identifier: Apache-2.0
"""Start a Ray cluster on this machine, whose nodes may see different folders."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
import pytest

from support.ports import find_free_port

# What `ray start` prints when its node is up.
_STARTED = "This command will now block"
# A node may fail to join while the head is busy.
_TRIES = 3


def skip_unless_folders_can_be_hidden(tmp_path: Path) -> None:
    """Skip a test if processes cannot have their own mounts here."""
    words = ["unshare", "--mount", "mount", "--bind", str(tmp_path), str(tmp_path)]
    try:
        allowed = subprocess.run(words, capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("processes cannot have their own mounts here")


@dataclass
class Node:
    """The `ray start` process of a node, and its log."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def end(self) -> None:
        """Stop all processes of the node."""
        if self.process.poll() is not None:
            # The node did not start.
            return
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for child in children:
            if child.is_running():
                child.kill()


def _wait_until_started(node: Node) -> bool:
    """Wait until a node is up; return False if its process ended instead."""
    end = time.monotonic() + 120
    while _STARTED not in node.log.read_text():
        assert time.monotonic() < end, node.log.read_text()
        if node.process.poll() is not None:
            return False
        time.sleep(0.1)
    return True


@dataclass
class Nodes:
    """A cluster. Its first node is the head, where drivers run.

    Args:
        environment: variables of all nodes and drivers, added to those of this process.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Paths of sockets must be short.
        self._temporary = tempfile.TemporaryDirectory(
            prefix="nodes-", dir="/tmp", ignore_cleanup_errors=True
        )
        self._folder = Path(self._temporary.name)
        self._port = find_free_port()
        # Leaves out the settings and the token of another Ray, perhaps of this process.
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_")
        }
        self.environment = {**inherited, "HOME": str(self._folder), **self.environment}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            node.end()
        self._temporary.cleanup()

    @property
    def address(self) -> str:
        """The address for drivers."""
        return f"127.0.0.1:{self._port}"

    def start(
        self,
        *words: str,
        seen_as: Mapping[Path, Path] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Node:
        """Start a node, and wait until it is up.

        Args:
            words: options of `ray start`.
            seen_as: folders that the node sees in the place of others.
            environment: variables of this node only.
        """
        head = ["--head", f"--port={self._port}", f"--temp-dir={self._folder}/ray"]
        head += ["--include-dashboard=false", f"--ray-client-server-port={find_free_port()}"]
        where = [f"--address={self.address}"] if self.nodes else head
        # The usual ports may be in use by another cluster.
        where += ["--min-worker-port=0", "--max-worker-port=0", "--block"]
        ray = [str(Path(sys.executable).with_name("ray")), "start", *where, *words]
        mounts = [
            shlex.join(["mount", "--bind", str(other), str(folder)])
            for folder, other in (seen_as or {}).items()
        ]
        command = " && ".join([*mounts, f"exec {shlex.join(ray)}"])
        started = [*(["unshare", "--mount"] if mounts else []), "sh", "-c", command]
        for tries_left in reversed(range(_TRIES if self.nodes else 1)):
            node = self._start_process(started, environment or {})
            if _wait_until_started(node):
                break
            assert tries_left, node.log.read_text()
        return node

    def _start_process(self, words: list[str], environment: Mapping[str, str]) -> Node:
        log = self._folder / f"node-{len(self.nodes)}.log"
        with open(log, "wb") as said:
            process = subprocess.Popen(
                words,
                cwd="/",
                env={**self.environment, **environment},
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        node = Node(process, log)
        self.nodes.append(node)
        return node
