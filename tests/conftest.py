# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests: one local Ray, the command line, and an object store."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Set before TensorFlow and Ray are imported. Ray keeps its token and a record of clusters at home.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# TensorFlow leaves oneDNN off on some processors, and cannot compute channels-first layers there.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["HOME"] = tempfile.mkdtemp(prefix="home-")
os.environ.pop("RAY_ADDRESS", None)
# scikit-learn's threads spin while they wait, which slows the tests beside it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# By default, Ray's workers yield to all other processes, and so to other tests.
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest

# While Ray is imported, commands that are called here stay in this process.
import ray
from support import object_store
from support.command import Command, Result

# Tests import PyTorch after TensorFlow, where Triton crashes Python.
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Start a local Ray that all runs in this process share, because starting one takes seconds."""
    ray.init(
        "local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    from ray_embed import Session

    with Session():
        yield
    ray.shutdown()


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Call ``ray-embed ARGS`` for a command without Ray, in this process and in `tmp_path`."""
    from ray_embed.cli.commands import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any) -> Result:
        monkeypatch.setattr(sys, "argv", ["ray-embed", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return Result(int(exited.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def ray_embed(ray_session: None, command: Command) -> Command:
    """Call ``ray-embed ARGS`` in this process, with `tmp_path` as the working folder."""
    return command


@pytest.fixture
def ray_embed_process(tmp_path: Path) -> Command:
    """Call ``ray-embed ARGS`` in its own process, with its own Ray."""

    def call(*arguments: Any, timeout: float = 300) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "ray_embed", *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def store_address() -> Iterator[str]:
    """Run an object store, and yield its address."""
    with object_store.server() as address:
        yield address


@pytest.fixture
def store(store_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object_store.Faults]:
    """Set the environment for an object store, and yield its faults, which can be changed."""
    faults = object_store.Faults()
    with object_store.proxy(store_address, faults) as proxied:
        for name, value in object_store.environment(proxied).items():
            monkeypatch.setenv(name, value)
        yield faults


@pytest.fixture
def bucket(store: object_store.Faults, request: pytest.FixtureRequest) -> str:
    """Return the URI of a bucket for one test."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:60].strip("-")
    object_store.make_bucket(name)
    return f"s3://{name}"
