# SPDX-License-Identifier: Apache-2.0
"""Commands in a child process, on systems that lack some of what Linux has."""

import subprocess
import sys

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
