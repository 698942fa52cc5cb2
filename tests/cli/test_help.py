# SPDX-License-Identifier: Apache-2.0
"""The help of the commands: complete, narrow enough, and quick."""

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ray_embed.cli.commands import cli

COMMANDS = (
    *("run", "extract", "sweep", "reduce", "view", "status", "evaluate"),
    *("plot", "layers", "preview", "compare", "demo"),
)
# Importing any of these would make the help slow.
HEAVY = (
    *("tensorflow", "keras", "tf_keras", "ray", "tensorboard", "openvino", "sklearn", "scipy"),
    *("pydantic", "pyarrow", "numpy", "pandas", "matplotlib", "yaml", "tqdm"),
)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_help_imports_no_heavy_module(tmp_path):
    code = f"""
import sys
from click.testing import CliRunner
from ray_embed.cli.commands import cli
for arguments in [["--version"], ["--help"], *([name, "--help"] for name in cli.commands)]:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0 and result.output, arguments
    print(arguments, sorted(set({HEAVY}) & set(sys.modules)))
"""
    for line in run_python(code, tmp_path).splitlines():
        assert line.endswith(" []"), line


def test_main_imports_no_heavy_module_for_help(tmp_path):
    code = f"""
import sys
sys.argv = ["ray-embed", "run", "--help"]
from ray_embed.cli.commands import main
try:
    main()
except SystemExit as stopped:
    assert not stopped.code
print(sorted(set({HEAVY}) & set(sys.modules)))
"""
    assert run_python(code, tmp_path).splitlines()[-1] == "[]"


def test_help_is_quick(tmp_path):
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "ray_embed", "run", "--help"], cwd=tmp_path, capture_output=True
        )
        seconds.append(time.monotonic() - began)
        assert done.returncode == 0
        assert done.stderr == b""
    # It takes a fifth of a second on a machine that is not busy.
    assert statistics.median(seconds) < 2


def test_help_lists_every_command_with_a_whole_sentence():
    result = invoke("--help")
    assert result.exit_code == 0
    listed = re.findall(r"^  ([a-z]+) +([A-Z].*)$", result.output.partition("Commands:")[2], re.M)
    assert [name for name, _ in listed] == list(COMMANDS)
    for _, text in listed:
        assert text.endswith(".")
        assert not text.endswith("...")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"{command} [OPTIONS]" in result.output
    assert len(result.output.splitlines()) > 4
    assert max(map(len, result.output.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(command):
    for option in cli.commands[command].params:
        if option.opts[0].startswith("-"):
            assert re.match(r"[A-Z`].*\.$", option.help), option.opts


@pytest.mark.parametrize("command", ["run", "extract"])
def test_help_names_every_option_of_the_contract(command):
    text = invoke(command, "--help").output
    options = (
        "source source-kwargs limit model import submodel model-kwargs weights layer pool "
        "image-size scale preprocess engine precision batch-size shard-size actors gpus-per-actor "
        "cpus-per-actor address shard-timeout max-attempts max-rejects max-pixels projector-limit "
        "overwrite out config path-column label-column label-type"
    )
    for option in options.split():
        assert re.search(rf"^  --{option}\b", text, re.M), option


def test_help_names_the_exit_codes():
    text = " ".join(invoke("--help").output.split())
    assert "0 success, 1 runtime failure, 2 invalid input, 130 interrupted" in text
