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


TOOLS = [
    (
        "torture",
        ["--kills", 12, "--records", 400],
        "nothing lost, doubled or moved, all bytes equal",
    ),
    (
        "poison",
        ["--records", 120, "--each", 1, "--shard-size", 32, "--attempts", 2],
        "exactly those are rejected",
    ),
    ("storage", ["--every", 9], "none left anything wrong"),
    ("hostile", ["--files", 1500], "all of these are rows"),
]


@pytest.mark.slow
def test_a_few_kills():
    done = tool("torture", "--kills", 4, "--records", 160, timeout=580)
    assert done.returncode == 0
    assert TOOLS[0][2] in done.stdout


@pytest.mark.timeout(1600)
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        pytest.param(
            *tool,
            # A few kills are above.
            marks=pytest.mark.longest if tool[0] == "torture" else pytest.mark.slow,
            id=tool[0],
        )
        for tool in TOOLS
    ],
)
def test_tool(name, arguments, said):
    done = tool(name, *arguments)
    if name == "storage" and done.returncode == 77:
        pytest.skip("no C compiler")
    assert done.returncode == 0
    assert said in done.stdout
