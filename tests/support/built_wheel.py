# SPDX-License-Identifier: Apache-2.0
"""What `make wheel` builds."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make_wheel(folder: Path) -> None:
    """Let `make wheel` build into a folder instead of dist/, with the tests' Python."""
    own = [f"BIN={Path(sys.executable).parent}", f"DIST={folder}"]
    done = subprocess.run(
        # As if .venv were there.
        ["make", "wheel", "--old-file=.venv/installed", *own],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
