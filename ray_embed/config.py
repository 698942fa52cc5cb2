# SPDX-License-Identifier: Apache-2.0
"""The options of a run: one model that the command line, a YAML file and Python all fill in."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

import pydantic
import yaml
from pydantic import Field, PositiveInt

from ray_embed.core.uri import is_uri
from ray_embed.errors import InputError

Pooling = Literal["gap", "gmp", "gem", "cls", "flatten", "none"]
Scale = Literal["unit", "symmetric", "none"]
Engine = Literal["auto", "tensorflow", "openvino"]
Precision = Literal["float32", "bfloat16"]
Resize = Literal["stretch", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "area", "lanczos3", "lanczos5"]
ChannelOrder = Literal["rgb", "bgr"]

_SPLIT = re.compile(r"[A-Za-z0-9_-]+")
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_LISTINGS = (".csv", ".tsv", ".npz")


# Ray's own word for a Ray that is started here.
LOCAL = "local"

# For `weights`: those that the model's layers are initialised with, by a fixed seed.
RANDOM = "random"


class RunConfig(pydantic.BaseModel):
    """What to embed, with which encoder, and where to put it.

    Only `sources` and `model` are needed. Each field is the option of `ray-embed run` of the same
    name; in Python a source may also be a dataset object or a function returning one, and the
    model a Keras model object or a function returning one.

    Raises:
        pydantic.ValidationError: a field is missing, unknown, or of another type.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=()
    )

    sources: dict[str, Any] = Field(min_length=1)
    model: Any
    out: str | None = None

    source_kwargs: dict[str, dict[str, Any]] = {}
    path_column: str = "path"
    label_column: str = "label"
    label_type: Literal["text", "int", "float"] = "text"
    empty_label: Literal["null", "keep"] = "null"
    limit: PositiveInt | None = None

    imports: tuple[str, ...] = ()
    submodel: str | None = None
    model_kwargs: dict[str, Any] = {}
    weights: str | None = None
    tags: tuple[str, ...] | None = None
    signature: str | None = None

    layers: tuple[str, ...] = ()
    pool: Pooling | None = None
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    resize: Resize | None = None
    crop_fraction: float | None = Field(default=None, gt=0, le=1)
    interpolation: Interpolation = "bilinear"
    antialias: bool = False
    exif_orientation: bool = False
    channels: Literal["repeat"] | None = None
    channel_order: ChannelOrder = "rgb"
    scale: Scale | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    preprocess: Any = None
    engine: Engine = "auto"
    precision: Precision = "float32"
    batch_size: PositiveInt | None = None
    shard_size: PositiveInt | None = None

    actors: PositiveInt | None = None
    gpus_per_actor: float | None = Field(default=None, ge=0)
    cpus_per_actor: PositiveInt | None = None
    address: str | None = None
    shard_timeout: float | None = Field(default=None, gt=0)
    max_attempts: PositiveInt = 3
    max_rejects: int | None = Field(default=None, ge=0)
    max_pixels: PositiveInt = 178_956_970
    projector_limit: PositiveInt = 100_000
    overwrite: bool = False

    @pydantic.field_validator("sources", mode="before")
    @classmethod
    def _named_sources(cls, value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping):
            named = [(str(split), source) for split, source in value.items()]
        elif isinstance(value, (list, tuple)):
            named = [split_and_uri(item) if isinstance(item, str) else item for item in value]
        elif isinstance(value, (str, Path)):
            named = [split_and_uri(str(value))]
        else:
            named = [("data", value)]
        sources: dict[str, Any] = {}
        for item in named:
            if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)):
                raise ValueError("write sources as [SPLIT=]URI, or as a mapping by split")
            split, source = item
            if source is None or isinstance(source, (bool, int, float)):
                raise ValueError(f"the split {split!r} has the source {source!r}: give a URI")
            if not _SPLIT.fullmatch(split):
                raise ValueError(f"split name {split!r}: use letters, digits, _ and - only")
            if split in sources:
                raise ValueError(
                    f"the split {split!r} is given twice; name them apart: --source NAME=URI"
                )
            sources[split] = str(source) if isinstance(source, Path) else source
        return sources

    @pydantic.field_validator("model", "preprocess", "weights", "out", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @pydantic.field_validator("model", mode="after")
    @classmethod
    def _folder_of_saved_model(cls, value: Any) -> Any:
        if isinstance(value, str) and PurePosixPath(value).name == "saved_model.pb":
            return value.removesuffix("saved_model.pb").rstrip("/") or "."
        return value

    @pydantic.field_validator("tags", mode="before")
    @classmethod
    def _separated_by_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [tag.strip() for tag in value.split(",") if tag.strip()]
        return value if value is None else tuple(sorted(value))

    @pydantic.field_validator("layers", "imports", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.field_validator("image_size", mode="before")
    @classmethod
    def _height_and_width(cls, value: Any) -> Any:
        if isinstance(value, str):
            sides = re.fullmatch(r"\s*(\d+)\s*(?:[,x×]\s*(\d+)\s*)?", value)
            if not sides:
                raise ValueError(f"{value!r} is no height and width: write --image-size 240,240")
            return (sides[1], sides[2] or sides[1])
        return (value, value) if isinstance(value, int) else value

    @pydantic.field_validator("mean", "std", mode="before")
    @classmethod
    def _one_number_or_one_a_channel(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(","))
        return (value,) if isinstance(value, (int, float)) else value

    @pydantic.field_validator("std")
    @classmethod
    def _something_to_divide_by(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(number <= 0 for number in value):
            raise ValueError("every number must be above 0, as pixels are divided by it")
        return value

    @pydantic.field_validator("preprocess")
    @classmethod
    def _of_keras(cls, value: Any) -> Any:
        name = value.removeprefix("keras:") if isinstance(value, str) else value
        return value if name == value else f"keras.applications.{name}:preprocess_input"

    @pydantic.field_validator("layers")
    @classmethod
    def _each_layer_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a layer is given twice")
        return value

    @pydantic.model_validator(mode="after")
    def _one_way_to_resize(self) -> "RunConfig":
        if self.crop_fraction is not None and self.resize is not None:
            raise ValueError(
                f"crop_fraction {self.crop_fraction:g} cuts out the center after resizing the "
                f"short side; give it or resize {self.resize}, not both"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _one_way_to_normalize(self) -> "RunConfig":
        if self.preprocess is not None and (self.mean or self.std):
            raise ValueError("preprocess takes the place of mean and std; give one of them")
        # With `none` means are of pixels from 0 to 255.
        if self.scale != "none" and any(abs(number) > 2 for number in self.mean):
            raise ValueError(
                f"mean {', '.join(f'{number:g}' for number in self.mean)}: it is subtracted after "
                "scaling to [0, 1]; for means of pixels from 0 to 255 give scale none"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _kwargs_have_a_split(self) -> "RunConfig":
        for split in self.source_kwargs:
            if split not in self.sources:
                raise ValueError(
                    f"source_kwargs has arguments for {split!r}, which is no split; "
                    f"the splits are {', '.join(self.sources)}"
                )
        return self


def is_callable_reference(text: str) -> bool:
    """Whether `text` has the form ``module:callable`` and is not a file of that name."""
    return bool(_CALLABLE.fullmatch(text)) and not Path(text).exists()


def ray_address(asked: str | None) -> str:
    """Give the Ray to work in, for the option `--address`; LOCAL for one that is started here."""
    return asked or os.environ.get("RAY_ADDRESS") or LOCAL


def split_and_uri(text: str) -> tuple[str, str]:
    """Take ``[SPLIT=]URI`` apart; without a name the split is called after the URI's base name."""
    name, equals, uri = text.partition("=")
    if equals and _SPLIT.fullmatch(name):
        return name, uri
    if is_callable_reference(text):
        base = text.rpartition(":")[2]
    else:
        path = urlsplit(text).path if is_uri(text) else text
        base = PurePosixPath(path.rstrip("/")).name or Path(text).resolve().name
        base = base.removesuffix(next((end for end in _LISTINGS if base.endswith(end)), ""))
    return re.sub(r"[^A-Za-z0-9_-]", "_", base) or "data", text


def tuples(value: Any) -> Any:
    """Give JSON-like data with its lists as tuples, as a Keras constructor expects shapes."""
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return value


def parse_json(option: str, text: str) -> dict[str, Any]:
    """Parse the JSON object an option was given.

    Raises:
        InputError: it does not parse (says where) or is no object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{option} {text}: not JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}; write it like '{{\"name\": 1}}'"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{option} {text}: a JSON object is needed, like '{{\"name\": 1}}'")
    return value


class _YamlLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for at, (key, _) in enumerate(node.value):
            if key.value in keys[:at]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def load_yaml(path: str) -> dict[str, Any]:
    """Read options from a YAML file; relative paths in it start at the file's folder.

    Raises:
        InputError: no such file, not YAML (says where), or not a mapping of options.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: cannot be read: {error}") from error
    try:
        options = yaml.load(text, _YamlLoader)  # noqa: S506 - derived from the safe loader
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(options, dict):
        raise InputError(
            f"--config {path}: a mapping of options is needed, like `model: enc.keras`"
        )
    options = {str(name): value for name, value in options.items()}
    folder = Path(path).parent
    for name in {"source_kwargs", "model_kwargs"} & options.keys():
        options[name] = tuples(options[name])
    for name in ("model", "weights", "out"):
        if isinstance(options.get(name), str):
            options[name] = _from_folder(options[name], folder)
    if "sources" in options:
        options["sources"] = _sources_from_folder(options["sources"], folder)
    return options


def _sources_from_folder(sources: Any, folder: Path) -> Any:
    if isinstance(sources, dict):
        return {
            split: _from_folder(uri, folder) if isinstance(uri, str) else uri
            for split, uri in sources.items()
        }
    if isinstance(sources, str):
        sources = [sources]
    if not isinstance(sources, list) or not all(isinstance(item, str) for item in sources):
        raise InputError(
            f"sources: {sources!r} is none: write a mapping SPLIT: URI, or a list of [SPLIT=]URI"
        )
    named = [split_and_uri(item) for item in sources]
    return [(split, _from_folder(uri, folder)) for split, uri in named]


def _from_folder(path: str, folder: Path) -> str:
    if is_uri(path) or is_callable_reference(path):
        return path
    return str(folder / path)


def make_config(options: Mapping[str, Any]) -> RunConfig:
    """Make the configuration from options named as the fields.

    Raises:
        InputError: what is wrong, an option a line.
    """
    try:
        return RunConfig(**options)
    except pydantic.ValidationError as error:
        raise InputError("\n".join(_explained(item) for item in error.errors())) from error


def _explained(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        mend = {"sources": "--source [SPLIT=]URI", "model": "--model M"}.get(name, name)
        return f"{mend} is needed"
    if item["type"] == "extra_forbidden":
        return f"{name}: no such option; the options are {', '.join(RunConfig.model_fields)}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
