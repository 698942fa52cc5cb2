# SPDX-License-Identifier: Apache-2.0
"""Build the wheel as `make wheel` does."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make_wheel(folder: Path) -> None:
    """Run `make wheel` with the Python of the tests, into a folder instead of dist/."""
    variables = [f"BIN={Path(sys.executable).parent}", f"DIST={folder}"]
    done = subprocess.run(
        # Makes `make` believe that .venv is up to date.
        ["make", "wheel", "--old-file=.venv/installed", *variables],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
