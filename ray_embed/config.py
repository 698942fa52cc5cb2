# SPDX-License-Identifier: Apache-2.0
"""The validated configuration of a run, from the command line, a YAML file or Python."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pydantic
import yaml

from ray_embed.core.model_names import names_model, normalize_model
from ray_embed.core.uri import is_uri
from ray_embed.errors import InputError
from ray_embed.options import OPTIONS, RunOptions, format_flag, takes_json

_SPLIT = re.compile(r"[A-Za-z0-9_-]+")
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_IMAGE_SIZE = re.compile(r"\s*(\d+)\s*(?:[,x×]\s*(\d+)\s*)?")
# The ending of a file, without which its name is the name of a split: .csv, .parquet, .h5.
_ENDING = re.compile(r"\.([a-z][a-z0-9]{2,8}|h5)$", re.IGNORECASE)
_WILDCARD = re.compile(r"[*?\[{]")
# What follows the name of a set in the names of its numbered files: train.tfrecord-00000-of-00010.
_SHARD = re.compile(r"(\.tfrec(ords?)?)?(-\d+-of-\d+)?$", re.IGNORECASE)

# How the name of a data set of another library begins; it is neither a path nor a callable.
DATA_SET_PREFIXES = ("tfds:", "hf:")

# Ray's own name for a Ray that is started on this machine.
LOCAL = "local"


class RunConfig(RunOptions, pydantic.BaseModel, frozen=True):
    """What to embed, with which encoder, and where to write the result.

    Only `sources` and `model` are required. Each field corresponds to the option of `ray-embed run`
    with the same name; repeatable options have plural names. In Python, a source can also be a
    dataset or a function that returns one, and the model can be a Keras model or a function that
    returns one.

    Raises:
        pydantic.ValidationError: a field is missing, unknown, or has a wrong value.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, protected_namespaces=()
    )

    @pydantic.field_validator("sources", mode="before")
    @classmethod
    def _normalize_sources(cls, value: Any) -> dict[str, Any]:
        sources: dict[str, Any] = {}
        for item in _list_sources(value):
            if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)):
                raise ValueError(
                    "sources must be [SPLIT=]URI strings, or a mapping from split to URI"
                )
            split, source = item
            if source is None or isinstance(source, (bool, int, float)):
                raise ValueError(
                    f"the source of split {split!r} is {source!r}, but must be a path, a URI or a "
                    "dataset"
                )
            if not is_split_name(split):
                raise ValueError(f"invalid split name {split!r}: use only letters, digits, _ and -")
            if split in sources:
                raise ValueError(
                    f"duplicate split {split!r}; give the splits different names: --source NAME=URI"
                )
            sources[split] = str(source) if isinstance(source, Path) else source
        return sources

    @pydantic.field_validator("model", "preprocess", "weights", "out", mode="before")
    @classmethod
    def _convert_path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @pydantic.field_validator("model", mode="after")
    @classmethod
    def _normalize_model(cls, value: Any) -> Any:
        if isinstance(value, str) and PurePosixPath(value).name == "saved_model.pb":
            return value.removesuffix("saved_model.pb").rstrip("/") or "."
        return normalize_model(value) if isinstance(value, str) else value

    @pydantic.field_validator("tags", mode="before")
    @classmethod
    def _split_tags(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [tag.strip() for tag in value.split(",") if tag.strip()]
        return value if value is None else tuple(sorted(value))

    @pydantic.field_validator("layers", "imports", mode="before")
    @classmethod
    def _accept_single_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.field_validator("image_size", mode="before")
    @classmethod
    def _parse_image_size(cls, value: Any) -> Any:
        if isinstance(value, str):
            sides = _IMAGE_SIZE.fullmatch(value)
            if not sides:
                raise ValueError(
                    f"{value!r} is not a height and width; use for example --image-size 240,240"
                )
            return (sides[1], sides[2] or sides[1])
        return (value, value) if isinstance(value, int) else value

    @pydantic.field_validator("depth", mode="before")
    @classmethod
    def _parse_depth(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @pydantic.field_validator("mean", "std", mode="before")
    @classmethod
    def _parse_numbers(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(","))
        return (value,) if isinstance(value, (int, float)) else value

    @pydantic.field_validator("std")
    @classmethod
    def _check_std_is_positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(number <= 0 for number in value):
            raise ValueError("every value must be greater than 0, because pixels are divided by it")
        return value

    @pydantic.field_validator("preprocess")
    @classmethod
    def _expand_keras_name(cls, value: Any) -> Any:
        name = value.removeprefix("keras:") if isinstance(value, str) else value
        return value if name == value else f"keras.applications.{name}:preprocess_input"

    @pydantic.field_validator("layers")
    @classmethod
    def _check_layers_differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a layer is given twice")
        return value

    @pydantic.model_validator(mode="after")
    def _check_resizing(self) -> "RunConfig":
        if self.crop_fraction is not None and self.resize is not None:
            raise ValueError(
                f"crop_fraction {self.crop_fraction:g} cuts out the center after resizing the "
                f"short side; give it or resize {self.resize}, not both"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _check_normalizing(self) -> "RunConfig":
        if self.preprocess is not None and (self.mean or self.std):
            raise ValueError("preprocess takes the place of mean and std; give one of them")
        # Without scaling, means are of pixels from 0 to 255.
        if self.scale != "none" and any(abs(number) > 2 for number in self.mean):
            raise ValueError(
                f"mean {', '.join(f'{number:g}' for number in self.mean)}: the mean is subtracted "
                "after scaling to [0, 1]; for means in [0, 255], set scale to none"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _check_splits_of_one_source(self) -> "RunConfig":
        if self.splits_from_column is None and not self.splits_from_folders:
            return self
        if self.splits_from_column is not None and self.splits_from_folders:
            raise ValueError("give splits_from_column or splits_from_folders, not both")
        option = "splits_from_folders" if self.splits_from_folders else "splits_from_column"
        if len(self.sources) > 1:
            raise ValueError(f"{option} makes the splits of one source, but there are several")
        ((split, source),) = self.sources.items()
        if isinstance(source, str) and split != name_source(source):
            raise ValueError(
                f"{option} names the splits; give the source without the name {split!r}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _check_splits_of_source_kwargs(self) -> "RunConfig":
        for split in self.source_kwargs:
            if split not in self.sources:
                raise ValueError(
                    f"source_kwargs has arguments for an unknown split {split!r}; the splits are "
                    f"{', '.join(self.sources)}"
                )
        return self


def _list_sources(value: Any) -> list[Any]:
    """Normalize sources to a list of (split, source), without validation."""
    if isinstance(value, Mapping):
        return [(str(split), source) for split, source in value.items()]
    if isinstance(value, (list, tuple)):
        return [parse_source(item) if isinstance(item, str) else item for item in value]
    if isinstance(value, (str, Path)):
        return [parse_source(str(value))]
    return [("data", value)]


def is_split_name(text: str) -> bool:
    """Return whether a split can have this name."""
    return bool(_SPLIT.fullmatch(text))


def is_callable_reference(text: str) -> bool:
    """Return whether `text` is ``module:callable`` and not an existing file."""
    if names_data_set(text) or names_model(text):
        return False
    return bool(_CALLABLE.fullmatch(text)) and not Path(text).exists()


def names_data_set(text: str) -> bool:
    """Return whether `text` names a data set of another library, such as ``tfds:mnist``."""
    return text.startswith(DATA_SET_PREFIXES)


def make_absolute(name: str, folder: Path) -> str:
    """Return the name of a data set or a model, in which the path of a folder is absolute."""
    prefix, _, rest = name.partition(":")
    path = folder.absolute() / rest
    return f"{prefix}:{path}" if prefix not in ("tfds", "keras") and path.is_dir() else name


def choose_ray_address(address: str | None) -> str:
    """Return the address of the Ray cluster: `address`, or ``RAY_ADDRESS``, or LOCAL."""
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def parse_source(text: str) -> tuple[str, str]:
    """Split ``[SPLIT=]URI`` in two; the default split name is the base name of the URI."""
    name, equals, uri = text.partition("=")
    if equals and is_split_name(name):
        return name, uri
    return name_source(text), text


def name_source(text: str) -> str:
    """Return the split name of a source that is given without one: the base name of the URI."""
    if is_callable_reference(text):
        base = text.rpartition(":")[2]
    elif names_data_set(text):
        base = text.split(":")[1]
        if text.startswith("hf:"):
            base = Path(base).resolve().name
    else:
        path = urlsplit(text).path if is_uri(text) else text
        base = PurePosixPath(path.rstrip("/")).name or Path(text).resolve().name
        is_folder = Path(path).is_dir()
        if not is_folder:
            base = _ENDING.sub("", base)
        # Of a pattern, what precedes the first wildcard, or else its folder.
        if wildcard := _WILDCARD.search(base):
            base = base[: wildcard.start()].rstrip("-_.") or PurePosixPath(path).parent.name
        if not is_folder:
            base = _SHARD.sub("", base) or base
    return re.sub(r"[^A-Za-z0-9_-]", "_", base) or "data"


def lists_to_tuples(value: Any) -> Any:
    """Convert lists to tuples recursively, because Keras constructors expect shapes as tuples."""
    if isinstance(value, list):
        return tuple(lists_to_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: lists_to_tuples(item) for key, item in value.items()}
    return value


def parse_json(option: str, text: str) -> dict[str, Any]:
    """Parse an option value as a JSON object, with lists converted to tuples.

    Raises:
        InputError: the text is not JSON (the message says where), or not an object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{option} {text}: invalid JSON: {error.msg} at line {error.lineno}, column "
            f"{error.colno}; expected for example '{{\"name\": 1}}'"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{option} {text}: expected a JSON object, for example '{{\"name\": 1}}'")
    return lists_to_tuples(value)  # type: ignore[no-any-return]


class _YamlLoader(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys, of which YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for position, (key, _) in enumerate(node.value):
            if key.value in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key.value!r}", key.start_mark
                )
        return super().construct_mapping(node, deep)


def load_yaml(path: str) -> dict[str, Any]:
    """Read options from a YAML file. Relative paths are resolved against the file's folder.

    Raises:
        InputError: the file cannot be read, is not YAML (the message says where), or is not a
            mapping of options.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: cannot be read: {error}") from error
    try:
        options = yaml.load(text, _YamlLoader)  # noqa: S506 - derived from the safe loader
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: invalid YAML: {error}") from error
    if not isinstance(options, dict):
        raise InputError(
            f"--config {path}: expected a mapping of options, for example `model: encoder.keras`"
        )
    folder = Path(path).parent
    named = {str(name): value for name, value in options.items()}
    return {name: _read_yaml_value(name, value, folder) for name, value in named.items()}


def _read_yaml_value(name: str, value: Any, folder: Path) -> Any:
    if name == "sources":
        return _resolve_sources(value, folder)
    if name in OPTIONS and takes_json(name):
        return lists_to_tuples(value)
    if name in OPTIONS and OPTIONS[name].is_location:
        # A sweep takes several.
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return [_resolve(item, folder) for item in value]
        return _resolve(value, folder) if isinstance(value, str) else value
    return value


def _resolve_sources(sources: Any, folder: Path) -> Any:
    if isinstance(sources, dict):
        return {
            split: _resolve(uri, folder) if isinstance(uri, str) else uri
            for split, uri in sources.items()
        }
    if isinstance(sources, str):
        sources = [sources]
    if not isinstance(sources, list) or not all(isinstance(item, str) for item in sources):
        raise InputError(
            f"sources: {sources!r} is invalid: expected a mapping from split to URI, or a list of "
            "[SPLIT=]URI"
        )
    return [_resolve_source(item, folder) for item in sources]


def _resolve_source(item: str, folder: Path) -> tuple[str, str]:
    split, uri = parse_source(item)
    resolved = _resolve(uri, folder)
    return (name_source(resolved) if uri == item else split), resolved


def _resolve(path: str, folder: Path) -> str:
    if names_data_set(path) or names_model(path):
        return make_absolute(path, folder)
    if is_uri(path) or is_callable_reference(path):
        return path
    return str(folder / path)


def make_config(options: Mapping[str, Any]) -> RunConfig:
    """Build a RunConfig from a mapping of its fields.

    Raises:
        InputError: an option is missing, unknown or invalid; the message has one line per problem.
    """
    try:
        return RunConfig(**options)
    except pydantic.ValidationError as error:
        raise InputError(
            "\n".join(_format_validation_error(item) for item in error.errors())
        ) from error


def _format_validation_error(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing" and name in OPTIONS:
        return f"{format_flag(name)} {OPTIONS[name].metavar} is required"
    if error["type"] == "extra_forbidden":
        return f"{name}: unknown option; valid options are {', '.join(RunConfig.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
