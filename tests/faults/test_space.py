# SPDX-License-Identifier: Apache-2.0
"""A disk that is full, or read-only; names that are too long; too few file handles."""

import resource
import shutil
import subprocess
import sys

import pytest
from support.pictures import make_folder
from support.sample_runs import read_results, save_encoder

PROGRAM = [sys.executable, "-m", "ray_embed"]
# A file system of its own, which ends with the process.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=150k none disk || exit 77
"$@"; echo "exit $?"
mount -o remount,ro disk
"$@"; echo "exit $?"
mount -o remount,rw,size=50m disk
"$@"; echo "exit $?"
cp -r disk/run copied
"""


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """An undisturbed run beside its inputs, by a process that may open few files."""
    folder = tmp_path_factory.mktemp("calm")
    make_folder(folder / "valid", {"a": 30, "b": 30})
    save_encoder(folder / "encoder.keras")
    done = called(folder, [*PROGRAM, *words("calm")], preexec_fn=limited(64))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def inputs(calm, tmp_path):
    shutil.copytree(calm, tmp_path, dirs_exist_ok=True)
    return tmp_path


def words(out):
    return [
        "run",
        "--source",
        "valid",
        "--model",
        "encoder.keras",
        "--out",
        out,
        "--shard-size",
        "8",
    ]


def limited(handles):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (handles, handles))


def called(inputs, command, **options):
    return subprocess.run(
        command, cwd=inputs, capture_output=True, text=True, timeout=300, **options
    )


@pytest.mark.slow
def test_full_then_read_only_then_large_enough(inputs):
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no program that makes a mount for one process")
    (inputs / "disk").mkdir()
    command = [unshare, "-Urm", "sh", "-c", ON_A_SMALL_DISK, "sh", *PROGRAM, *words("disk/run")]
    done = called(inputs, command)
    if not done.stdout:
        pytest.skip(f"nothing can be mounted: {done.stderr}")
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit")]
    assert codes == ["exit 1", "exit 2", "exit 0"], done.stderr
    assert "cannot be written: No space left on device" in done.stderr
    assert "Finished shards are kept. Resume with: ray-embed run" in done.stderr
    assert "disk/run may not be written to; give another folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_results(inputs / "copied") == read_results(inputs / "calm")
    assert not (inputs / "copied" / ".tmp").exists()


@pytest.mark.slow
def test_few_file_handles(inputs):
    """Sixty-four are enough, as the undisturbed run shows; with fewer it is said."""
    failed = called(inputs, [*PROGRAM, *words("run")], preexec_fn=limited(16))
    assert failed.returncode in (1, 2)
    assert "ray-embed: " in failed.stderr
    assert called(inputs, [*PROGRAM, *words("run")]).returncode == 0
    assert read_results(inputs / "run") == read_results(inputs / "calm")


@pytest.mark.parametrize("out", ["x" * 300, "/".join(["x" * 200] * 30)])
def test_name_that_is_too_long(tmp_path, ray_embed, out):
    make_folder(tmp_path / "valid", {"a": 2})
    save_encoder(tmp_path / "encoder.keras")
    result = ray_embed(*words(out))
    assert result.code == 2
    assert "File name too long; give another folder" in result.err
    assert "Traceback" not in result.err
