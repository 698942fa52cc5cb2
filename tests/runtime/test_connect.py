# SPDX-License-Identifier: Apache-2.0
"""Clusters that cannot be joined: said at once, with the mend, and no traceback."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from support.command import Result
from support.nodes import Nodes
from support.pictures import make_folder
from support.sample_runs import read_parts, save_encoder

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def listening() -> Iterator[str]:
    """Something that listens, and is no Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def run(tmp_path: Path, nodes: Nodes, address: str, **environment: str) -> Result:
    source, model = tmp_path / "source", tmp_path / "encoder.keras"
    if not source.exists():
        make_folder(source, {"x": 3})
        save_encoder(model)
    words = ["--source", source, "--model", model, "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "ray_embed", "run", "--address", address, *map(str, words)],
        cwd=tmp_path,
        env={**nodes.environment, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def refused(result: Result, address: str) -> str:
    assert result.code == 2, result.err
    assert f"--address {address}: " in result.err
    assert "Traceback" not in result.err
    return result.err


def test_where_nothing_listens_it_is_not_tried_for_minutes(tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with Nodes() as nodes:
            said = refused(run(tmp_path, nodes, address), address)
    assert "nothing listens there (Connection refused)" in said
    assert "6379" in said


def test_without_the_token_that_is_asked_for_the_ways_to_give_it_are_named(tmp_path, listening):
    with Nodes() as nodes:
        said = refused(run(tmp_path, nodes, listening, RAY_AUTH_MODE="token"), listening)
    for name in ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN ", "RAY_AUTH_TOKEN_PATH", "auth_token"):
        assert name in said


@pytest.mark.slow
def test_a_cluster_with_a_token(tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with Nodes() as nodes:
        its = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        nodes.start("--num-cpus=2", environment=its)
        for given in ({}, {**its, "RAY_AUTH_TOKEN": TOKEN[::-1]}):
            said = refused(run(tmp_path, nodes, nodes.address, **given), nodes.address)
            assert "does it want a token" in said
            assert "RAY_AUTH_TOKEN_PATH" in said
        given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
        result = run(tmp_path, nodes, nodes.address, **given)
        assert result.code == 0, result.err
    assert read_parts(tmp_path / "run").num_rows == 3


@pytest.mark.slow
def test_a_cluster_of_another_ray_is_named_with_both_versions(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sitecustomize.py").write_text('import ray\nray.__version__ = "2.1.99"\n')
    with Nodes() as nodes:
        nodes.start("--num-cpus=1", environment={"PYTHONPATH": str(tmp_path / "other")})
        said = refused(run(tmp_path, nodes, nodes.address), nodes.address)
    assert "Ray: 2.1.99" in said
    assert f"Ray: {metadata.version('ray')}" in said
    assert "install the same versions of Ray and Python on all machines" in said
