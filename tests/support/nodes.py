# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of nodes on this machine, of which each may see other folders than this process."""

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

# What `ray start` says when its node is there.
_STARTED = "This command will now block"
# Of a node to join.
_TRIES = 3


def skip_unless_folders_can_be_hidden(tmp_path: Path) -> None:
    """Skip a test where processes may not be given other mounts than this one."""
    words = ["unshare", "--mount", "mount", "--bind", str(tmp_path), str(tmp_path)]
    try:
        allowed = subprocess.run(words, capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("mounts of a process's own are not permitted here")


@dataclass
class Node:
    """A node's `ray start`, and what it has said."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def end(self) -> None:
        """End all of the node's processes."""
        if self.process.poll() is not None:
            # It has not started.
            return
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for one in below:
            if one.is_running():
                one.kill()


def _wait_until_started(node: Node) -> bool:
    """Wait until a node is there; gives whether its process has lived to see it."""
    end = time.monotonic() + 120
    while _STARTED not in node.log.read_text():
        assert time.monotonic() < end, node.log.read_text()
        if node.process.poll() is not None:
            return False
        time.sleep(0.1)
    return True


@dataclass
class Nodes:
    """A cluster; its first node is the head, on which drivers are.

    Args:
        environment: variables of all nodes, and of drivers, beside this process's own.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Paths of sockets may not be long.
        self._temporary = tempfile.TemporaryDirectory(
            prefix="nodes-", dir="/tmp", ignore_cleanup_errors=True
        )
        self._folder = Path(self._temporary.name)
        self._port = find_free_port()
        # Without what another Ray, of this very process perhaps, has set, and without its token.
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = {**own, "HOME": str(self._folder), **self.environment}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            node.end()
        self._temporary.cleanup()

    @property
    def address(self) -> str:
        """Where drivers find it."""
        return f"127.0.0.1:{self._port}"

    def start(
        self,
        *words: str,
        seen_as: Mapping[Path, Path] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Node:
        """Start a node, and wait until it is there.

        Args:
            words: options of `ray start`.
            seen_as: folders in whose place the node sees others.
            environment: more variables of this node.
        """
        head = ["--head", f"--port={self._port}", f"--temp-dir={self._folder}/ray"]
        head += ["--include-dashboard=false", f"--ray-client-server-port={find_free_port()}"]
        where = [f"--address={self.address}"] if self.nodes else head
        # The usual ports may be another cluster's.
        where += ["--min-worker-port=0", "--max-worker-port=0", "--block"]
        ray = [str(Path(sys.executable).with_name("ray")), "start", *where, *words]
        mounts = [
            shlex.join(["mount", "--bind", str(other), str(folder)])
            for folder, other in (seen_as or {}).items()
        ]
        command = " && ".join([*mounts, f"exec {shlex.join(ray)}"])
        started = [*(["unshare", "--mount"] if mounts else []), "sh", "-c", command]
        # A head that is busy may let a node wait in vain.
        for left in reversed(range(_TRIES if self.nodes else 1)):
            node = self._start_process(started, environment or {})
            if _wait_until_started(node):
                break
            assert left, node.log.read_text()
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
