# SPDX-License-Identifier: Apache-2.0
"""Two commands on one run folder: the second one waits a little, then is refused."""

import signal
import subprocess
import sys
import time

import pytest
from support.pictures import make_folder
from support.sample_runs import save_encoder

from ray_embed.errors import InputError
from ray_embed.projector import reduce as reduce_module
from ray_embed.storage import lock
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.lock import lock_folder

HOLD = """
import sys, time
from ray_embed.storage.lock import lock_folder
from ray_embed.storage import lock
from ray_embed.storage.filesystem import Folder
with lock_folder(Folder.open(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holding(path, seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_second_command_is_refused_before_it_writes_anything(tmp_path, ray_embed, monkeypatch):
    monkeypatch.setattr(lock, "_LOCK_SECONDS", 0.5)
    source = make_folder(tmp_path / "valid", {"a": 3})
    model = save_encoder(tmp_path / "encoder.keras")
    holder = holding(tmp_path / "run", 100)
    try:
        refused = ray_embed("run", "--source", source, "--model", model, "--out", "run")
        assert refused.code == 2
        assert f"process {holder.pid}" in refused.err
        assert [path.name for path in (tmp_path / "run").rglob("*")] == [".tmp", "lock"]
    finally:
        holder.kill()
        holder.wait()
    # The lock ends with the process.
    assert ray_embed("run", "--source", source, "--model", model, "--out", "run").code == 0
    holder = holding(tmp_path / "run", 100)
    try:
        with pytest.raises(InputError, match="another ray-embed is writing"):
            reduce_module.reduce(str(tmp_path / "run"))
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()


def test_command_waits_for_one_that_is_about_to_end(tmp_path):
    holder = holding(tmp_path / "run", 1)
    began = time.monotonic()
    with lock_folder(Folder.open(str(tmp_path / "run"))):
        assert time.monotonic() - began < 5
    assert holder.wait() == 0
    # Nothing else was written, so nothing is left behind.
    assert not (tmp_path / "run").exists()


def test_unfinished_files_are_deleted(tmp_path):
    temporary = tmp_path / "run" / ".tmp"
    (temporary / "projector-x").mkdir(parents=True)
    (temporary / "projector-x" / "file").write_bytes(b"x")
    (temporary / "part-00000000.parquet.0123").write_bytes(b"x")
    (tmp_path / "run" / "features").mkdir()
    with lock_folder(Folder.open(str(tmp_path / "run"))):
        assert [path.name for path in temporary.iterdir()] == ["lock"]
