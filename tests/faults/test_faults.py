# SPDX-License-Identifier: Apache-2.0
"""Short runs of the tools beside this file, which say what they did, and fail where it is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def tool(name, *arguments, timeout=1500):
    done = subprocess.run(
        [sys.executable, HERE / f"{name}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    print(done.stdout, done.stderr)
    return done


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_killed_again_and_again():
    done = tool("torture", "--kills", 12, "--records", 400)
    assert done.returncode == 0
    assert "nothing lost, doubled or moved, all bytes equal" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_records_that_crash_or_hang():
    done = tool("poison", "--records", 120, "--each", 1, "--shard-size", 32, "--attempts", 2)
    assert done.returncode == 0
    assert "exactly those are rejected" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_operations_that_fail_once():
    done = tool("storage", "--every", 9)
    if done.returncode == 77:
        pytest.skip("no C compiler")
    assert done.returncode == 0
    assert "none left anything wrong" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_hostile_files():
    done = tool("hostile", "--files", 1500)
    assert done.returncode == 0
    assert "all of these are rows" in done.stdout
