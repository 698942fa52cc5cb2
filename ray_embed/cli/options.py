# SPDX-License-Identifier: Apache-2.0
"""Options of the command line, made from those of a run, and shown under headings."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import click

from ray_embed.options import (
    OPTIONS,
    Group,
    OnResume,
    describe_default,
    find_options,
    format_flag,
    get_value_type,
    takes_json,
)

_Function = TypeVar("_Function", bound=Callable[..., Any])

_COMMON_HEADING = "Common options"
# What most runs need, in the order of the help; the other options follow under their own headings.
_COMMON = (
    *("sources", "model", "weights", "layers", "pool"),
    *("image_size", "batch_size", "limit", "out", "config"),
)


class DocumentedOption(click.Option):
    """An option with a heading in the help, and a default in words.

    Args:
        heading: where the help shows it; None for the end.
        default_text: the default as the help shows it; None where click shows it, or there is none.
    """

    def __init__(
        self,
        *arguments: Any,
        heading: str | None = None,
        default_text: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.heading, self.default_text = heading, default_text

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its text, with the default at the end."""
        record = super().get_help_record(ctx)
        if record is None or self.default_text is None:
            return record
        names, text = record
        return names, f"{text}  [default: {self.default_text}]"


option = functools.partial(click.option, cls=DocumentedOption)


class GroupedCommand(click.Command):
    """A command whose help shows its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each heading."""
        for heading, options in group_options(self, ctx).items():
            records = (option.get_help_record(ctx) for option in options)
            with formatter.section(heading):
                formatter.write_dl([record for record in records if record])


def group_options(command: click.Command, context: click.Context) -> dict[str, list[click.Option]]:
    """Return the options of a command by heading; those without one come last."""
    groups: dict[str, list[click.Option]] = {}
    others = []
    for parameter in command.get_params(context):
        if heading := getattr(parameter, "heading", None):
            groups.setdefault(heading, []).append(cast(DocumentedOption, parameter))
        elif isinstance(parameter, click.Option):
            others.append(parameter)
    groups["Other options" if groups else "Options"] = others
    return groups


def run_options(function: _Function) -> _Function:
    """Add all options of a run, and `--config`, to the function of a command."""
    common = {name: _make_option(name, _COMMON_HEADING) for name in _COMMON if name in OPTIONS}
    common["config"] = option(
        "--config",
        heading=_COMMON_HEADING,
        metavar="YAML",
        help="Read options from a YAML file. Its keys are the options' names with _ instead of -; "
        "repeatable options have plural names: sources, layers, imports. The command line wins "
        "over the file.",
    )
    others = [
        _make_option(name, declared.group.value)
        for name, declared in OPTIONS.items()
        if name not in _COMMON
    ]
    return _add_options(function, [*common.values(), *others])


def model_options(function: _Function) -> _Function:
    """Add the options that say how to load the encoder to the function of a command."""
    names = [name for name, declared in OPTIONS.items() if declared.group is Group.ENCODER]
    return _add_options(function, [_make_option(name, Group.ENCODER.value) for name in names])


def format_resume_note() -> str:
    """Return a sentence that names the options that may change when a run is resumed."""
    *flags, last = (format_flag(name) for name in find_options(OnResume.MAY_CHANGE))
    return f"When a run is resumed, these options may change: {', '.join(flags)} and {last}."


def _add_options(function: _Function, options: list[Callable[[_Function], _Function]]) -> _Function:
    # The decorator that is applied last comes first in the help.
    return functools.reduce(lambda result, decorate: decorate(result), reversed(options), function)


def _make_option(name: str, heading: str) -> Callable[[_Function], _Function]:
    declared, kind = OPTIONS[name], get_value_type(name)
    settings: dict[str, Any] = {"metavar": declared.metavar}
    # Without a default of its own, an option that is not given leaves the YAML file's value.
    if kind is bool:
        settings |= {"is_flag": True, "default": None}
    elif declared.repeatable:
        settings |= {"multiple": True}
    elif takes_json(name):
        settings |= {"callback": _parse_json, "metavar": "JSON"}
    elif get_origin(kind) is Literal:
        settings |= {"type": click.Choice(get_args(kind))}
    elif kind in (int, float):
        settings |= {"type": kind}
    return option(
        format_flag(name),
        name,
        heading=heading,
        help=declared.help,
        default_text=describe_default(name),
        **settings,
    )


def _parse_json(
    context: click.Context, option: click.Parameter, text: str | None
) -> dict[str, Any] | None:
    from ray_embed.config import parse_json

    return None if text is None else parse_json(option.opts[0], text)
