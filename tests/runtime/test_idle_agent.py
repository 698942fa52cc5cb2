# SPDX-License-Identifier: Apache-2.0
"""The stand-in for Ray's agent tells its ports, and ends with its parent."""

import subprocess
import sys
import time

import psutil

from ray_embed.runtime import idle_agent

# The parent of the agent prints its id, and ends when its standard input does.
PARENT = """
import subprocess, sys
print(subprocess.Popen(sys.argv[1:]).pid, flush=True)
sys.stdin.read()
"""


def test_agent_tells_its_ports_and_ends_with_its_parent(tmp_path):
    agent = [sys.executable, "-I", "-S", idle_agent.__file__, "/ray/dashboard/agent.py"]
    agent += ["--node-id=ab12", f"--session-dir={tmp_path}", "--head"]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *agent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        process = psutil.Process(int(parent.stdout.readline()))
        ports = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
        files = {tmp_path / f"{name}_ab12" for name in ports}
        end = time.monotonic() + 60
        while set(tmp_path.iterdir()) != files and time.monotonic() < end:
            time.sleep(0.02)
        assert [file.read_text() for file in files] == ["-1"] * 3
        assert process.is_running()
    gone, _ = psutil.wait_procs([process], 60)
    assert gone
