# SPDX-License-Identifier: Apache-2.0
"""Commands in a child process, on systems that lack some of what Linux has."""

import subprocess
import sys

import psutil
import pytest

RUN = """
import os, sys
{before}
sys.argv = ["ray-embed", "reduce", "nothing"]
from ray_embed.cli.commands import main
main()
"""


@pytest.mark.parametrize("before", ["", "del os.waitid"], ids=["Linux", "macOS before 3.13"])
def test_command_in_a_child_process_ends_with_its_exit_code(tmp_path, before):
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(before=before)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "nothing: not a run folder" in done.stderr
    assert "Traceback" not in done.stderr


ORPHAN = """
import subprocess, sys
from ray_embed.cli.supervisor import supervise

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], start_new_session=True); "

def work():
    # In a session of its own, so that it is not in the process group of this one.
    print_id = [sys.executable, "-c", PARENT + "print(p.pid, flush=True)", *SLEEP]
    subprocess.run(print_id, check=True)
    sys.exit({code})

supervise(work, lambda ending: 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hand over orphans")
@pytest.mark.parametrize("code", [0, 1])
def test_orphans_end_with_the_command(code):
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN.format(code=code)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert not psutil.pid_exists(int(done.stdout))
