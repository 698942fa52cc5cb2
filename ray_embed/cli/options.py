# SPDX-License-Identifier: Apache-2.0
"""Command-line options, generated from the run options and grouped under headings."""

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
_COMMON_OPTIONS = (
    *("sources", "model", "weights", "layers", "pool"),
    *("image_size", "batch_size", "limit", "out", "config"),
)


class DocumentedOption(click.Option):
    """A click option with a help heading and a default described in words.

    Args:
        heading: the heading that it is listed under; None for "Other options".
        default_text: the default as shown in the help; None if click shows it or if there is none.
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
        """Return the option's names and its help text with the default appended."""
        record = super().get_help_record(ctx)
        if record is None or self.default_text is None:
            return record
        names, text = record
        return names, f"{text}  [default: {self.default_text}]"


option = functools.partial(click.option, cls=DocumentedOption)


class GroupedCommand(click.Command):
    """A command whose help groups its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each heading."""
        for heading, options in group_options(self, ctx).items():
            records = (option.get_help_record(ctx) for option in options)
            with formatter.section(heading):
                formatter.write_dl([record for record in records if record])


def group_options(command: click.Command, context: click.Context) -> dict[str, list[click.Option]]:
    """Group the options of a command by heading; options without a heading come last."""
    groups: dict[str, list[click.Option]] = {}
    others = []
    for parameter in command.get_params(context):
        if heading := getattr(parameter, "heading", None):
            groups.setdefault(heading, []).append(cast(DocumentedOption, parameter))
        elif isinstance(parameter, click.Option):
            others.append(parameter)
    groups["Other options" if groups else "Options"] = others
    return groups


def add_run_options(function: _Function) -> _Function:
    """Decorate a command function with all run options and `--config`."""
    common = {
        name: _make_option(name, _COMMON_HEADING) for name in _COMMON_OPTIONS if name in OPTIONS
    }
    common["config"] = option(
        "--config",
        heading=_COMMON_HEADING,
        metavar="YAML",
        help="Read options from a YAML file. Keys are option names with _ instead of -; repeatable "
        "options have plural keys: sources, layers, imports. Command-line options override the "
        "file.",
    )
    others = [
        _make_option(name, declared.group.value)
        for name, declared in OPTIONS.items()
        if name not in _COMMON_OPTIONS
    ]
    return _add_options(function, [*common.values(), *others])


# What differs in a sweep from a run: the help of an option, and its default in words.
_SWEEP_OPTIONS = {
    "model": (
        "The encoder, as for `run`. Repeat it, or give a quoted pattern such as "
        "'models/*.keras', for several.",
        None,
    ),
    "weights": (
        "Weights to load into the model, as for `run`. Repeat it, or give a quoted pattern such as "
        "'checkpoints/epoch-*.weights.h5', or a folder with several TensorFlow checkpoints.",
        describe_default("weights"),
    ),
    "layers": (
        "Layer to extract features from, as a run of its own. Commas join the layers of one run: "
        "--layer early,late.",
        describe_default("layers"),
    ),
    "out": (
        "Folder of the run folders: a path or URI. Runs that it already contains are resumed.",
        "runs/<model>-sweep",
    ),
}


def add_sweep_options(function: _Function) -> _Function:
    """Decorate a command function with all run options, some of which are for several encoders."""
    decorated = add_run_options(function)
    for parameter in decorated.__click_params__:  # type: ignore[attr-defined]
        if parameter.name in _SWEEP_OPTIONS:
            parameter.help, parameter.default_text = _SWEEP_OPTIONS[parameter.name]
            parameter.multiple = parameter.name != "out"
    return decorated


def add_model_options(function: _Function) -> _Function:
    """Decorate a command function with the options that specify the encoder."""
    names = [name for name, declared in OPTIONS.items() if declared.group is Group.ENCODER]
    return _add_options(function, [_make_option(name, Group.ENCODER.value) for name in names])


def format_resume_note() -> str:
    """Return a sentence that lists the options that can be changed on resume."""
    *flags, last = (format_flag(name) for name in find_options(OnResume.MAY_CHANGE))
    return f"These options can be changed when a run is resumed: {', '.join(flags)} and {last}."


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
        settings |= {"type": click.Choice([str(choice) for choice in get_args(kind)])}
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
