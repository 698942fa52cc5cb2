# SPDX-License-Identifier: Apache-2.0
"""Presets of KerasHub: by name (``keras_hub:PRESET``), or a folder."""

import difflib
from pathlib import Path
from typing import Any

from ray_embed.core.model_names import KERAS_HUB
from ray_embed.encoders.forms.base import Form
from ray_embed.encoders.forms.kept_model import describe_architecture, wrap_kept_model
from ray_embed.encoders.forms.keras_object import wrap_model
from ray_embed.encoders.image_converters import find_pixel_options
from ray_embed.encoders.keras_hub_import import import_keras_hub
from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.spec import EncoderSpec, KeptModel
from ray_embed.encoders.unsupported_formats import is_keras_hub_preset
from ray_embed.errors import InputError, get_first_line

_LIST = "https://keras.io/keras_hub/presets/"


def _matches(spec: EncoderSpec) -> bool:
    if not isinstance(spec.model, str):
        return False
    return spec.model.startswith(KERAS_HUB) or is_keras_hub_preset(Path(spec.model))


def _load(spec: EncoderSpec) -> LoadedModel:
    """Load the backbone of a preset, and what its ImageConverter does to pixels.

    Raises:
        InputError: KerasHub is not installed, the preset cannot be loaded, it does not take images,
            or no pixel option does what its ImageConverter does.
    """
    library = import_keras_hub(spec.model_name)
    preset = spec.model.removeprefix(KERAS_HUB)
    if spec.model.startswith(KERAS_HUB) and "://" not in preset:
        _check_name(preset, library.models.Backbone.presets)
    converter = _load_converter(library, preset, spec)
    pixels = {}
    if converter is not None:
        base = library.layers.ImageConverter
        pixels = find_pixel_options(converter, base, spec.model_name, spec.pixel_options)
    else:
        # Refuse a model of text before its weights are downloaded.
        wrap_model(_load_backbone(library, preset, spec, load_weights=False), spec, {})
    model = _load_backbone(library, preset, spec, load_weights=spec.weights is None)
    kept = KeptModel(
        architecture=describe_architecture(model),
        pixels=pixels,
        image_size=_find_image_size(converter),
        notes=tuple(_describe(model, converter)),
    )
    return wrap_kept_model(model, spec, kept)


def _find_image_size(converter: Any) -> tuple[int, int] | None:
    size = getattr(converter, "image_size", None)
    return None if size is None else (int(size[0]), int(size[1]))


def _check_name(preset: str, known: Any) -> None:
    """Check that KerasHub has a preset.

    Raises:
        InputError: it does not.
    """
    if preset in known:
        return
    close = difflib.get_close_matches(preset, known, 5, 0.5)
    like = f"; similar ones: {', '.join(f'{KERAS_HUB}{name}' for name in close)}" if close else ""
    raise InputError(
        f"--model {KERAS_HUB}{preset}: KerasHub has no preset of this name, and there is no such "
        f"folder{like}; see {_LIST}"
    )


def _load_converter(library: Any, preset: str, spec: EncoderSpec) -> Any:
    """Return the ImageConverter of a preset, or None if it has none."""
    try:
        return library.layers.ImageConverter.from_preset(preset)
    except FileNotFoundError:
        return None
    except Exception as error:
        # Models of text have no class of converters.
        if "Unable to find a subclass of" in str(error):
            return None
        raise _explain(spec, error) from error


def _load_backbone(library: Any, preset: str, spec: EncoderSpec, *, load_weights: bool) -> Any:
    try:
        return library.models.Backbone.from_preset(
            preset, load_weights=load_weights, **spec.model_kwargs
        )
    except Exception as error:
        raise _explain(spec, error) from error


def _explain(spec: EncoderSpec, error: Exception) -> InputError:
    fix = "check the files of the folder"
    if spec.model.startswith(KERAS_HUB):
        fix = (
            f"check the name ({_LIST}) and the network. To use it without a network, load it "
            "elsewhere with keras_hub.models.Backbone.from_preset and "
            "keras_hub.layers.ImageConverter.from_preset, save both with save_to_preset(FOLDER), "
            "copy the folder, and give --model FOLDER"
        )
    return InputError(
        f"--model {spec.model_name}: KerasHub cannot load it: {type(error).__name__}: "
        f"{get_first_line(error)[:300]}; {fix}"
    )


def _describe(model: Any, converter: Any) -> list[str]:
    notes = [f"the encoder is a {type(model).__name__} of KerasHub"]
    if converter is None:
        notes.append(
            "the preset has no ImageConverter, so the default preprocessing is used; give --scale, "
            "--mean and --std if it was trained on other pixels"
        )
    elif converter.antialias:
        notes.append(
            "antialiased pixels are rounded to whole levels after each side, as in Pillow, which "
            "the ImageConverter of the preset does not do"
        )
    return notes


FORM = Form(matches=_matches, load=_load)
