# SPDX-License-Identifier: Apache-2.0
"""The page docs/cli.md, which is made from the commands."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from ray_embed.cli.commands import cli
from ray_embed.cli.docs import format_page, main
from ray_embed.options import OPTIONS, describe_default, format_flag

TAKE_ALL = ("extract", "sweep", "preview")
PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def section_of(command: str) -> str:
    return format_page().partition(f"\n## ray-embed {command}\n")[2].partition("\n## ")[0]


def test_page_in_the_docs_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == format_page()


@pytest.mark.parametrize("command", cli.commands)
def test_page_has_every_command_with_its_options(command):
    section = section_of(command)
    assert f"ray-embed {command} [OPTIONS]" in section
    for parameter in cli.commands[command].params:
        name = parameter.opts[0]
        shared = command in TAKE_ALL and parameter.name in {*OPTIONS, "config"}
        shared &= command != "sweep" or parameter.name not in ("model", "weights", "layers", "out")
        assert (f"| `{name}" in section) is (name.startswith("--") and not shared)


def test_page_shows_help_and_default_of_every_option():
    rows = [line for line in section_of("run").splitlines() if line.startswith("| `--")]
    for name, option in OPTIONS.items():
        (row,) = (
            row
            for row in rows
            if row.startswith((f"| `{format_flag(name)} ", f"| `{format_flag(name)}`"))
        )
        row = row.replace("\\|", "|").replace("&lt;", "<")
        assert row.endswith(f"| {option.help} | {describe_default(name) or ''} |")


def test_check_passes_where_the_page_is_up_to_date(tmp_path):
    page = tmp_path / "cli.md"
    page.write_text(CliRunner().invoke(main, []).output, encoding="utf-8")
    assert CliRunner().invoke(main, ["--check", str(page)]).exit_code == 0


def test_check_fails_where_the_page_differs(tmp_path):
    page = tmp_path / "cli.md"
    page.write_text(format_page().replace("--batch-size", "--batches"), encoding="utf-8")
    result = CliRunner().invoke(main, ["--check", str(page)])
    assert result.exit_code == 1
    assert "--batches" in result.output
    assert "out of date; run: python -m ray_embed.cli.docs" in result.output
