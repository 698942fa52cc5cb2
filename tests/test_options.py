# SPDX-License-Identifier: Apache-2.0
"""The declared options of a run, and what is made of them: RunConfig and the command line."""

import re
from typing import Literal, get_args, get_origin

import click
import pytest

from ray_embed import RunConfig
from ray_embed.cli.commands import cli
from ray_embed.config import make_config
from ray_embed.options import (
    CPU_BATCH_SIZE,
    DEFAULT_SHARD_SIZE,
    GPU_BATCH_SIZE,
    MAX_CPU_THREADS,
    OPTIONS,
    Group,
    OnResume,
    describe_default,
    find_options,
    format_flag,
    get_default,
    get_value_type,
    takes_json,
)

NEEDED = {"sources", "model"}
COMMON = [
    *("--source", "--model", "--weights", "--layer", "--pool"),
    *("--image-size", "--batch-size", "--limit", "--out", "--config"),
]


def command_options(command: str) -> dict[str, click.Option]:
    parameters = cli.commands[command].params
    return {item.opts[0]: item for item in parameters if isinstance(item, click.Option)}


def help_of(command: str) -> str:
    context = click.Context(cli.commands[command], info_name=command, terminal_width=100)
    return context.get_help()


def test_config_has_every_option_as_a_field_with_its_default():
    assert list(RunConfig.model_fields) == list(OPTIONS)
    for name, field in RunConfig.model_fields.items():
        assert field.is_required() is (name in NEEDED)
        assert name in NEEDED or field.default == get_default(name)


def test_config_without_options_has_the_defaults():
    config = make_config({"sources": "x", "model": "m"})
    for name in OPTIONS.keys() - NEEDED:
        assert getattr(config, name) == get_default(name)


@pytest.mark.parametrize("command", ["run", "extract", "preview"])
@pytest.mark.parametrize("name", OPTIONS)
def test_command_has_every_option(command, name):
    option = command_options(command)[format_flag(name)]
    assert option.name == name
    assert option.multiple is OPTIONS[name].repeatable
    # The YAML file's value counts where the command line has none.
    assert option.default is None or not isinstance(option.default, (str, int, float))
    assert re.search(rf"^  {format_flag(name)}\b", help_of(command), re.MULTILINE)


def test_layers_has_the_options_of_the_encoder():
    encoder = {
        format_flag(name) for name, option in OPTIONS.items() if option.group is Group.ENCODER
    }
    assert command_options("layers").keys() == encoder


def test_repeatable_options_are_singular_on_the_command_line():
    names = {name: format_flag(name) for name, option in OPTIONS.items() if option.repeatable}
    assert names == {"sources": "--source", "imports": "--import", "layers": "--layer"}


def test_options_that_take_json():
    assert [name for name in OPTIONS if takes_json(name)] == ["source_kwargs", "model_kwargs"]


@pytest.mark.parametrize("name", OPTIONS)
def test_help_is_a_sentence_and_names_every_default(name):
    option = OPTIONS[name]
    assert re.match(r"[A-Z`].*\.$", option.help), option.help
    assert "default" not in option.help
    default = get_default(name)
    if isinstance(default, (int, str)) and not isinstance(default, bool):
        assert describe_default(name) == str(default)
        assert f"[default: {default}]" in " ".join(help_of("run").split())


def test_no_default_is_typed_into_a_help_text():
    numbers = {CPU_BATCH_SIZE, GPU_BATCH_SIZE, MAX_CPU_THREADS, DEFAULT_SHARD_SIZE}
    numbers |= {value for name in OPTIONS if type(value := get_default(name)) is int}
    for option in OPTIONS.values():
        assert numbers.isdisjoint(map(int, re.findall(r"\b\d+\b", option.help))), option.help


@pytest.mark.parametrize("name", OPTIONS)
def test_help_explains_short_values(name):
    if get_origin(get_value_type(name)) is Literal and name in ("pool", "scale", "resize"):
        for value in get_args(get_value_type(name)):
            assert f"`{value}`" in OPTIONS[name].help


@pytest.mark.parametrize("command", ["run", "extract", "preview"])
def test_help_shows_the_common_options_first(command):
    text = help_of(command)
    common = text.partition("Common options:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (--[a-z-]+)", common, re.MULTILINE) == COMMON
    headings = re.findall(r"^([A-Z].*):$", text.partition("Common options:\n")[2], re.MULTILINE)
    assert headings[: len(Group)] == [group.value for group in Group]


def test_options_that_may_change_when_a_run_is_resumed():
    assert find_options(OnResume.MAY_CHANGE) == [
        *("actors", "gpus_per_actor", "address"),
        *("shard_timeout", "max_attempts", "max_rejects", "projector_limit"),
    ]
    text = " ".join(help_of("run").split()).replace("- ", "-")
    for name in find_options(OnResume.MAY_CHANGE):
        assert format_flag(name) in text.partition("These options can be changed")[2]


def test_options_whose_value_is_part_of_the_identity():
    assert find_options(OnResume.SAME_VALUE) == ["limit", "precision", "max_pixels"]
    assert set(find_options(OnResume.SAME_VALUE_IF_SET)) == {
        *("tags", "signature", "resize", "crop_fraction", "interpolation", "antialias"),
        *("exif_orientation", "channels", "channel_order", "depth", "decode_scale", "mean", "std"),
        *("jpeg_dct", "crop_corner"),
    }
