# SPDX-License-Identifier: Apache-2.0
"""Which processes a command starts for a Ray of its own, and that none of them outlives it."""

import contextlib
import shlex
import subprocess
import sys
import time

import psutil
import pytest
from support.pictures import make_folder
from support.sample_runs import save_encoder

# Parts of the command lines of what only clusters need.
HELPERS = ("log_monitor.py", "/monitor.py", "dashboard.py", "/dashboard/agent.py", "DashboardAgent")


def run_and_watch(folder, words):
    """Run a command; return its exit code, its messages, and the command lines of its processes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_embed", *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = {}
    while process.poll() is None:
        time.sleep(0.02)
        with contextlib.suppress(psutil.Error):
            for one in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    lines.setdefault(one, set()).add(shlex.join(one.cmdline()))
    said = process.stderr.read()
    process.stderr.close()
    return process.returncode, said, lines


@pytest.mark.parametrize("rejects", [0, 1], ids=["success", "failure"])
def test_no_process_outlives_a_run(tmp_path, rejects):
    make_folder(tmp_path / "valid", {"a": 5})
    for number in range(rejects):
        (tmp_path / "valid" / f"{number}.png").write_bytes(b"no picture")
    save_encoder(tmp_path / "encoder.keras")
    words = "run --source valid --model encoder.keras --out run --max-rejects 0"
    code, said, lines = run_and_watch(tmp_path, words.split())
    assert code == rejects, said
    _, alive = psutil.wait_procs(lines, 5)
    left = [lines[one] for one in alive]
    for one in alive:
        one.kill()
    assert not left
    started = [line for each in lines.values() for line in each]
    for name in ("raylet", "gcs_server", "build_process", "ray::"):
        assert any(name in line for line in started), f"no {name} in {started}"
    # These have the command lines of Ray's agents among their arguments.
    known = ("/raylet/raylet ", "/idle_agent.py ")
    others = [line for line in started if not any(name in line for name in known)]
    assert not [line for line in others if any(name in line for name in HELPERS)]


FAILS = """
import sys
import psutil
from ray_embed import RunConfig, RunError, run

def count_actors():
    children = psutil.Process().children(recursive=True)
    return sum("ray::Extractor" in " ".join(one.cmdline()) for one in children)

for out, accepted in (("failed", 0), ("done", 1)):
    try:
        run(RunConfig(sources=sys.argv[1:2], model=sys.argv[2], out=out, max_rejects=accepted))
        failed = False
    except RunError:
        failed = True
    print(failed, count_actors(), flush=True)
"""


def test_actors_of_a_failed_run_have_ended(tmp_path):
    # They may still write to a run folder that nobody has locked.
    source = make_folder(tmp_path / "valid", {"a": 5})
    (source / "broken.png").write_bytes(b"no picture")
    model = save_encoder(tmp_path / "encoder.keras")
    done = subprocess.run(
        [sys.executable, "-c", FAILS, str(source), str(model)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["True 0", "False 1"], done.stderr
