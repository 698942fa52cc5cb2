# SPDX-License-Identifier: Apache-2.0
"""Ray's own process on the machine is killed while actors are still to be started."""

import contextlib
import subprocess
import sys
import time

import psutil
import pytest
from support.pictures import make_folder
from support.sample_runs import save_encoder


def worker_that_starts(process):
    """Wait for the first process that Ray starts for an actor, before the actor is there."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.01)
        with contextlib.suppress(psutil.Error):
            for one in psutil.Process(process.pid).children(recursive=True):
                # The raylet itself has the worker's command line among its arguments.
                if any(word.endswith("/default_worker.py") for word in one.cmdline()):
                    return one
    raise AssertionError("Ray has started no worker")


@pytest.mark.slow
def test_raylet_is_killed_before_an_actor_is_there(tmp_path):
    make_folder(tmp_path / "valid", {"a": 30})
    save_encoder(tmp_path / "encoder.keras")
    words = ["run", "--source", "valid", "--model", "encoder.keras", "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_embed", *words, "--actors", "2"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Without the mend it would wait for ever, so this has no other way to fail than the time limit.
    try:
        worker_that_starts(process).parent().kill()
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert "Traceback" not in said
    # The run folder may have been begun by then.
    assert "Run again with: ray-embed run" in said
