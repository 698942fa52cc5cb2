# SPDX-License-Identifier: Apache-2.0
"""The pages for readers: links, paths and commands in them are right."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ray_embed.cli.commands import cli

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "cluster").glob("*.md")),
    "tests/benchmarks/README.md",
]
MOST_LINES = 120
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*([^)\s]+)\s*\)")
_PATH = re.compile(r"(?:ray_embed|tests|cluster|docs|\.github|\.ci)/[\w./*-]*")


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def read_prose(page: str) -> str:
    """Return a page without its blocks of code."""
    return _FENCE.sub("", read_page(page))


def list_anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    anchors: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", read_prose(page), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        repeats = sum(re.sub(r"-\d+$", "", known) == anchor for known in anchors)
        anchors.append(f"{anchor}-{repeats}" if repeats else anchor)
    return set(anchors)


def list_commands(page: str) -> Iterator[list[str]]:
    """Yield the words of every `ray-embed` command, in blocks of code and in the text."""
    blocks = [text.replace("\\\n", " ") for _, text in _FENCE.findall(read_page(page))]
    inline = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", read_prose(page))]
    for line in (line for text in [*blocks, *inline] for line in text.splitlines()):
        if "ray-embed" not in line and "submit.py" not in line:
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        for start, word in enumerate(words):
            if word == "ray-embed" and words[start + 1 :]:
                yield words[start + 1 :]
            if word.endswith("submit.py") and words[start + 1 : start + 2] == ["--"]:
                yield ["run", *words[start + 2 :]]


def parse_command(words: list[str]) -> None:
    """Parse a command without running it; a text may leave its arguments out.

    Raises:
        click.UsageError: no such command, option or choice.
    """
    name, *arguments = words
    if name not in {*cli.commands, "--help"}:
        raise click.UsageError(f"no such command: {name}")
    if "--help" not in words:
        with contextlib.suppress(click.MissingParameter):
            cli.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    links = [link for link in _LINK.findall(read_prose(page)) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in list_anchors(str(target.relative_to(ROOT))), link


@pytest.mark.parametrize("page", PAGES)
def test_paths_of_the_repository_exist(page):
    for code in re.findall(r"`([^`]+)`", read_prose(page)):
        for word in code.split():
            if _PATH.fullmatch(word):
                # Modules may be named without their ending.
                names = (word.rstrip("/"), f"{word}.py")
                assert any(list(ROOT.glob(name)) for name in names), word


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/cli.md"])
def test_commands_have_the_options_that_the_pages_name(page):
    for words in list_commands(page):
        try:
            parse_command(words)
        except click.UsageError as error:
            pytest.fail(f"ray-embed {shlex.join(words)}: {error.format_message()}")


def test_commands_of_the_readme_are_found():
    names = {words[0] for words in list_commands("README.md")}
    assert names >= {"preview", "run", "view", "evaluate", "compare", "plot"}


@pytest.mark.parametrize("words", [["walk"], ["run", "--no-such"], ["run", "--pool", "mean"]])
def test_wrong_commands_are_noticed(words):
    with pytest.raises(click.UsageError):
        parse_command(words)


def test_readme_is_short():
    assert len(read_page("README.md").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_index_names_every_page(page):
    if page != "docs/README.md":
        assert f"({Path(page).name})" in read_page("docs/README.md")
