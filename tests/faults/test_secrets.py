# SPDX-License-Identifier: Apache-2.0
"""Passwords and values of the environment are not shown and not kept; Ray asks for its token."""

import contextlib
import os
import shlex
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from support.pictures import make_folder
from support.sample_runs import contents, save_encoder

SECRET = "hunter2secret"  # not one


@pytest.mark.parametrize(
    "uri",
    [
        pytest.param(
            f"s3://key:{SECRET}@bucket/run?endpoint_override=127.0.0.1:1", marks=pytest.mark.slow
        ),
        pytest.param(f"s3://key:{SECRET}@no bucket/run", marks=pytest.mark.slow),
        pytest.param(f"s3://{SECRET}@bucket/run", marks=pytest.mark.slow),
        f"s3://key:{SECRET}@{SECRET}@bucket/run",
        f"nosuch://me:{SECRET}@host/run",
        f"nosuch://me:{SECRET}@host:x/run",
    ],
)
def test_password_of_a_uri_is_not_shown(tmp_path, ray_embed, monkeypatch, uri):
    # Nobody outside is asked.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    source = make_folder(tmp_path / "valid", {"a": 2})
    model = save_encoder(tmp_path / "encoder.keras")
    for words in (
        ["run", "--source", source, "--model", model, "--out", uri],
        ["run", "--source", uri, "--model", model],
        ["run", "--source", source, "--model", uri],
        ["run", "--source", source, "--model", model, "--weights", uri],
        ["status", uri],
        ["reduce", uri],
        ["view", uri],
    ):
        result = ray_embed(*words)
        assert result.code in (1, 2), words
        assert SECRET not in result.out + result.err
        assert "Traceback" not in result.err


def test_password_is_not_in_the_command_that_resumes():
    from ray_embed.cli.resuming import _format_command

    words = ["run", "--source", f"valid=s3://key:{SECRET}@bucket/a b", "--overwrite"]
    command = shlex.split(_format_command(words, resumes=True))
    assert command == ["ray-embed", "run", "--source", "valid=s3://***@bucket/a b"]


def test_nothing_secret_is_kept_in_the_run_folder(tmp_path, ray_embed, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_ENVIRONMENT", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    (tmp_path / "hiding.py").write_text(
        textwrap.dedent("""
            import numpy as np
            def images(address):
                return [(np.full((16, 16, 3), at, np.uint8), 1) for at in range(5)]
        """)
    )
    save_encoder(tmp_path / "encoder.keras")
    words = ["run", "--source", "valid=hiding:images", "--model", "encoder.keras", "--out", "run"]
    words += ["--source-kwargs", f'{{"valid": {{"address": "sql://me:{SECRET}@host/table"}}}}']
    result = ray_embed(*words)
    assert result.code == 0, result.err
    kept = contents(tmp_path / "run")
    assert b"sql://host/table" in kept["run.json"]
    assert not [name for name, content in kept.items() if SECRET.encode() in content]
    assert SECRET not in result.out + result.err
    assert ray_embed(*words).code == 0


WAITING = """
import pathlib, time
import numpy as np

def images():
    while not pathlib.Path("go").exists():
        time.sleep(0.1)
    return [(np.zeros((16, 16, 3), np.uint8), 1)]
"""
CONNECT = """
import sys, ray
ray.init(sys.argv[1], logging_level="ERROR")
print("connected")
"""


@pytest.mark.slow
def test_a_ray_that_is_started_asks_for_its_token(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    save_encoder(tmp_path / "encoder.keras")
    words = ["extract", "--source", "valid=waiting:images", "--model", "encoder.keras"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_embed", *words], cwd=tmp_path, stderr=subprocess.PIPE
    )
    try:
        address = f"127.0.0.1:{port_of('gcs_server', process)}"
        assert "connected" not in connected(address, HOME=str(tmp_path))
        # So it is for the token alone.
        assert "connected" in connected(address, RAY_AUTH_MODE="token")
    finally:
        (tmp_path / "go").touch()
        _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said


def port_of(name, process):
    """Wait until a process below listens; gives its port."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(psutil.Error):
            for one in psutil.Process(process.pid).children(recursive=True):
                for connection in one.net_connections("inet") if one.name() == name else ():
                    if connection.status == psutil.CONN_LISTEN:
                        return connection.laddr.port
        time.sleep(0.2)
    raise AssertionError(f"{name} does not listen")


def connected(address, **environment):
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, address],
        # Else it looks for 127.0.0.1 at the machine's own address.
        env={**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout
