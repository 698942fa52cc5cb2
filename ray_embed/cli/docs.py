# SPDX-License-Identifier: Apache-2.0
"""Generate `docs/cli.md`, the command reference, from the click commands.

``python -m ray_embed.cli.docs > docs/cli.md`` writes the page; ``--check docs/cli.md`` fails if the
page is out of date.
"""

import difflib
import sys
from pathlib import Path

import click

from ray_embed.cli.commands import cli
from ray_embed.cli.options import group_options

_PROGRAM = "ray-embed"
# The command whose options other commands take too; the page lists them once.
_REFERENCE_COMMAND = "run"
_NOTICE = (
    "<!-- Generated from the commands: `python -m ray_embed.cli.docs > docs/cli.md`. "
    "Do not edit. -->"
)


def format_page() -> str:
    """Return the page as Markdown."""
    top = click.Context(cli, info_name=_PROGRAM)
    contexts = [click.Context(cli.commands[name], top, name) for name in cli.list_commands(top)]
    summary = [
        f"| [`{context.info_name}`](#{_PROGRAM}-{context.info_name}) "
        f"| {_escape(_read_help(context.command)[0])} |"
        for context in contexts
    ]
    blocks = [
        "# Command line",
        _NOTICE,
        f"`{_PROGRAM} COMMAND --help` shows the same information for one command. "
        f"`python -m ray_embed` is the same as `{_PROGRAM}`.",
        *_read_help(cli),
        cli.epilog or "",
        "\n".join(["| command | what it does |", "|---|---|", *summary]),
        *(block for context in contexts for block in _format_command(context)),
    ]
    return "\n\n".join(blocks) + "\n"


def _format_command(context: click.Context) -> list[str]:
    command, path = context.command, context.command_path
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    blocks = [f"## {path}", f"```\n{usage}\n```", *_read_help(command)]
    shared = _find_shared_options(command)
    if shared:
        blocks.append(
            f"Takes all options of [`{_PROGRAM} {_REFERENCE_COMMAND}`]"
            f"(#{_PROGRAM}-{_REFERENCE_COMMAND})."
        )
    for heading, options in group_options(command, context).items():
        rows = [
            _format_row(option, context)
            for option in options
            if option.name not in shared and "--help" not in option.opts
        ]
        if rows:
            table = ["| option | what it does | default |", "|---|---|---|", *rows]
            blocks += [f"**{heading}**", "\n".join(table)]
    if command.epilog and not shared:
        blocks.append(command.epilog)
    return blocks


def _find_shared_options(command: click.Command) -> set[str]:
    """Return the names of the shared options if `command` takes all of them, else an empty set.

    Options with another help text are not shared.
    """
    reference = cli.commands[_REFERENCE_COMMAND]
    helps, own = dict(_list_helps(reference)), dict(_list_helps(command))
    if command is reference or not helps.keys() <= own.keys():
        return set()
    return {name for name, help_text in helps.items() if own[name] == help_text}


def _list_helps(command: click.Command) -> list[tuple[str, str | None]]:
    return [(each.name or "", getattr(each, "help", None)) for each in command.params]


def _format_row(option: click.Option, context: click.Context) -> str:
    names, _ = option.get_help_record(context) or ("", "")
    default = getattr(option, "default_text", None)
    if default is None and option.show_default:
        default = str(option.default)
    cells = (f"`{names}`", option.help or "", default or "")
    return f"| {' | '.join(_escape(cell) for cell in cells)} |"


def _read_help(command: click.Command) -> list[str]:
    """Return the paragraphs of a command's help text, each as one line."""
    return [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]


def _escape(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


@click.command()
@click.option(
    "--check",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Compare the page with this file instead of printing it, and exit with 1 if they differ.",
)
def main(check: Path | None) -> None:
    """Print the command reference as Markdown."""
    page = format_page()
    if check is None:
        click.echo(page, nl=False)
        return
    text = check.read_text(encoding="utf-8")
    if text == page:
        return
    changes = difflib.unified_diff(
        text.splitlines(), page.splitlines(), str(check), "the commands", lineterm="", n=0
    )
    click.echo("\n".join(changes), err=True)
    click.echo(f"{check} is out of date; run: python -m ray_embed.cli.docs > {check}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
