# SPDX-License-Identifier: Apache-2.0
"""Options of the command line, made from those of a run, and shown under headings."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

import click

from ray_embed.options import (
    OPTIONS,
    Group,
    OnResume,
    describe_default,
    flag,
    options_compared_by,
    takes_json,
    value_type,
)

_Function = TypeVar("_Function", bound=Callable[..., Any])

_COMMON_HEADING = "Common options"
# What most runs need, in the order of the help; the other options follow under their own headings.
_COMMON = (
    *("sources", "model", "weights", "layers", "pool"),
    *("image_size", "batch_size", "limit", "out", "config"),
)


class GroupedOption(click.Option):
    """An option that the help shows under a heading."""

    def __init__(self, *arguments: Any, heading: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.heading = heading


class GroupedCommand(click.Command):
    """A command whose help shows its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each heading."""
        for heading, options in group_options(self, ctx).items():
            with formatter.section(heading):
                formatter.write_dl([record for _, record in options])


def group_options(
    command: click.Command, context: click.Context
) -> dict[str, list[tuple[click.Parameter, tuple[str, str]]]]:
    """Return the options of a command and their texts in the help, by heading."""
    groups: dict[str, list[tuple[click.Parameter, tuple[str, str]]]] = {}
    for parameter in command.get_params(context):
        if record := parameter.get_help_record(context):
            heading = getattr(parameter, "heading", "Other")
            groups.setdefault(heading, []).append((parameter, record))
    return groups


def run_options(function: _Function) -> _Function:
    """Add all options of a run, and `--config`, to the function of a command."""
    common = {name: _make_option(name, _COMMON_HEADING) for name in _COMMON if name in OPTIONS}
    common["config"] = click.option(
        "--config",
        cls=GroupedOption,
        heading=_COMMON_HEADING,
        metavar="YAML",
        help="Read options from a YAML file. Its keys are the options' names with _ instead of -; "
        "repeatable options have plural names: sources, layers, imports. The command line wins "
        "over the file.",
    )
    others = [
        _make_option(name, option.group.value)
        for name, option in OPTIONS.items()
        if name not in _COMMON
    ]
    return _add_options(function, [*common.values(), *others])


def model_options(function: _Function) -> _Function:
    """Add the options that say how to load the encoder to the function of a command."""
    names = [name for name, option in OPTIONS.items() if option.group is Group.ENCODER]
    return _add_options(function, [_make_option(name, Group.ENCODER.value) for name in names])


def resume_note() -> str:
    """Return a sentence that names the options that may change when a run is resumed."""
    *flags, last = (flag(name) for name in options_compared_by(OnResume.MAY_CHANGE))
    return f"When a run is resumed, these options may change: {', '.join(flags)} and {last}."


def _add_options(function: _Function, options: list[Callable[[_Function], _Function]]) -> _Function:
    # The decorator that is applied last comes first in the help.
    return functools.reduce(lambda result, option: option(result), reversed(options), function)


def _make_option(name: str, heading: str) -> Callable[[_Function], _Function]:
    option, kind = OPTIONS[name], value_type(name)
    default = describe_default(name)
    settings: dict[str, Any] = {
        "help": option.help + (f"  [default: {default}]" if default else ""),
        "metavar": option.metavar,
    }
    # Without a default of its own, an option that is not given leaves the YAML file's value.
    if kind is bool:
        settings |= {"is_flag": True, "default": None}
    elif option.repeatable:
        settings |= {"multiple": True}
    elif takes_json(name):
        settings |= {"callback": _parse_json, "metavar": "JSON"}
    elif get_origin(kind) is Literal:
        settings |= {"type": click.Choice(get_args(kind))}
    elif kind in (int, float):
        settings |= {"type": kind}
    return click.option(flag(name), name, cls=GroupedOption, heading=heading, **settings)


def _parse_json(
    context: click.Context, option: click.Parameter, text: str | None
) -> dict[str, Any] | None:
    from ray_embed.config import parse_json

    return None if text is None else parse_json(option.opts[0], text)
