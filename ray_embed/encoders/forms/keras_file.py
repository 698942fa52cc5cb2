# SPDX-License-Identifier: Apache-2.0
"""Model files of Keras: .keras, .h5, model.json, and the SavedModel folders of Keras 2."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed.config import is_callable_reference
from ray_embed.encoders import lambda_layers, unsafe_models
from ray_embed.encoders.custom_objects import (
    Objects,
    describe_missing,
    find_custom_objects,
    find_missing_objects,
)
from ray_embed.encoders.file_format import HDF5, ZIP, detect_format, link_with_suffix
from ray_embed.encoders.forms.base import Form
from ray_embed.encoders.forms.keras_object import wrap_model
from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.model_json import detect_keras_family, is_model_json, model_from_json
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.encoders.unsupported_formats import refuse_unsupported_format
from ray_embed.errors import InputError

_ACCEPTED = "give a .keras, .h5 or .onnx file, a SavedModel folder, or module:callable"
_OTHER_FORMS = (
    "\nKeras cannot read every .h5 file that it writes: save the model as .keras, or give --model "
    "module:callable, and this file to --weights"
)


@dataclass(frozen=True)
class _StoredModel:
    """The content of a model file: which Keras reads it, its configurations, and its suffix."""

    family: str
    configs: list[Any]
    suffix: str


def _matches(spec: EncoderSpec) -> bool:
    return isinstance(spec.model, str) and not is_callable_reference(spec.model)


def _load(spec: EncoderSpec) -> LoadedModel:
    path = Path(spec.model)
    refuse_unsupported_format(path)
    stored = _read_stored(path)
    objects = find_custom_objects(stored.configs, spec.imports, stored.family, f"--model {path}")
    if stored.family == "tf_keras":
        lambda_layers.refuse_lambdas(path, stored.configs, objects, spec.imports)
    if path.is_dir():
        unsafe_models.refuse_unsafe_operations(path)
    return wrap_model(_load_by_keras(path, stored, objects, spec), spec, objects)


def _load_by_keras(path: Path, stored: _StoredModel, objects: Objects, spec: EncoderSpec) -> Any:
    library = importlib.import_module(stored.family)
    with link_with_suffix(path, stored.suffix) as link:
        try:
            if stored.suffix == ".json":
                return model_from_json(path, objects)
            return library.saving.load_model(
                link, custom_objects=objects, compile=False, safe_mode=True
            )
        except Exception as error:
            reason = _describe_missing(stored, objects, spec)
            if not reason:
                text = str(error).strip() or type(error).__name__
                reason = text[:1500].replace(str(link), str(path))
                reason += _OTHER_FORMS if stored.suffix == ".h5" else ""
            raise InputError(f"--model {path}: cannot be loaded: {reason}") from error


def _read_stored(path: Path) -> _StoredModel:
    """Return what a model file or folder contains.

    Raises:
        InputError: the path does not exist, or is not a model.
    """
    if not path.exists():
        raise InputError(f"--model {path}: no such file; {_ACCEPTED}")
    version, texts, suffix = _read_configs(path)
    family = "tf_keras" if version.startswith(("1.", "2.")) else "keras"
    configs = [_without_training(lambda_layers.parse_config(path, text)) for text in texts]
    return _StoredModel(family, configs, suffix)


def _read_configs(path: Path) -> tuple[str, list[str], str]:
    """Return the Keras version, the JSON of the configurations, and the true suffix."""
    if path.is_dir():
        texts = lambda_layers.saved_model_configs(path)
        if texts is None:
            raise InputError(f"--model {path}: a folder without saved_model.pb is no SavedModel")
        return "2.0", texts, ""
    if is_model_json(path):
        version = "2.0" if detect_keras_family(path) == "tf_keras" else "3.0"
        return version, [path.read_text(encoding="utf-8")], ".json"
    kind = detect_format(path)
    if kind == ZIP:
        version, text = lambda_layers.keras_archive(path)
        return version, [text], ".keras"
    if kind == HDF5:
        version, text = lambda_layers.hdf5_model(path)
        return version, [text], ".h5"
    raise InputError(f"--model {path}: not a model; {_ACCEPTED}")


def _without_training(config: Any) -> Any:
    """Return a configuration without the parts that only training needs."""
    if not isinstance(config, dict):
        return config
    training = ("compile_config", "training_config")
    return {key: value for key, value in config.items() if key not in training}


def _describe_missing(stored: _StoredModel, objects: Objects, spec: EncoderSpec) -> str:
    """Describe what the file's configuration needs that Keras does not have."""
    if any(map(lambda_layers.holds_lambda, stored.configs)):
        return (
            "it holds a Lambda; Python code stored in a model file is not run; build the model in "
            "a function of yours and give --model module:callable with --weights"
        )
    missing = find_missing_objects(stored.configs, objects, stored.family)
    return describe_missing(missing, spec.imports, stored.family) if missing else ""


FORM = Form(matches=_matches, load=_load)
