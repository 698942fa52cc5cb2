# SPDX-License-Identifier: Apache-2.0
"""Ray's own process on the machine is killed while actors are still to be started."""

import contextlib
import subprocess
import sys
import time

import psutil
import pytest
from conftest import make_folder
from samples import save_encoder


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
    end = time.monotonic() + 60
    names = {}
    while not any("Extractor" in name for name in names) and time.monotonic() < end:
        time.sleep(0.05)
        with contextlib.suppress(psutil.Error):
            everyone = psutil.Process(process.pid).children(recursive=True)
            names = {" ".join(one.cmdline()): one for one in everyone}
    next(one for name, one in names.items() if "raylet/raylet" in name).kill()
    try:
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "go on with: ray-embed run" in said
