# SPDX-License-Identifier: Apache-2.0
"""Transformers of Hugging Face: ``hf:USER/NAME``, or a folder that `save_pretrained` wrote."""

import functools
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_embed.core.model_names import HF
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.encoders.torch_models.libraries.base import Library, NamedModule
from ray_embed.encoders.torch_models.libraries.downloads import HUB_PAGES, explain_download
from ray_embed.encoders.torch_models.libraries.image_processors import find_pixel_options
from ray_embed.encoders.unsupported_formats import read_json
from ray_embed.errors import InputError, get_first_line
from ray_embed.options import VALUE_OPTIONS

_IMAGES = "pixel_values"
_POOLED, _HIDDEN = "pooled", "last_hidden_state"
# The names of the modules that pool.
_POOLERS = ("pooler", "head")
_SETTINGS = ("preprocessor_config.json", "processor_config.json")
# What the names of the weights of a vision tower begin with in a whole model.
_TOWER = "vision_model."
_WEIGHTS = "model.safetensors or pytorch_model.bin"


def _is_folder(path: Path) -> bool:
    """Return whether a folder has the description that `save_pretrained` of a model writes."""
    file = path / "config.json"
    return file.is_file() and "model_type" in read_json(file)


def _load(spec: EncoderSpec, name: str, pretrained: bool) -> NamedModule:
    """Create a model, or the vision tower of one, and find out how its images are prepared.

    Raises:
        InputError: there is no such model, it takes other inputs than images, it needs code from
            the hub, it cannot be downloaded; or no option does what its image processor does.
    """
    where = f"--model {spec.model_name}"
    if "weights_only" in spec.model_kwargs:
        raise InputError(
            "--model-kwargs: weights_only is not accepted, because reading other pickles runs code"
        )
    config = _use(where, name, functools.partial(_read_config, name))
    is_tower = getattr(config, "vision_config", None) is not None
    config = config.vision_config if is_tower else config
    _check_kind(where, config)
    pixels, processed = _find_pixels(where, name, spec)
    create = functools.partial(_create, name, config, pretrained, spec)
    module, missing = _use(where, name, create)
    kind = type(module).__name__
    if module.main_input_name != _IMAGES:
        raise InputError(
            f"{where}: {kind} takes {module.main_input_name}, and an encoder takes one batch of "
            "images"
        )
    size = spec.image_size or processed or _read_size(module.config)
    _fix_arguments(module, size)
    outputs = {_HIDDEN: _make_output(module, _HIDDEN)}
    if _has_pooler(module, size, where):
        outputs[_POOLED] = _make_output(module, "pooler_output")
    is_random = any(part in _POOLERS for name in missing for part in name.split("."))
    default = _HIDDEN if is_random or _POOLED not in outputs else _POOLED
    reason = ", as the published weights have no pooler" if is_random else ""
    part = ", the vision tower alone" if is_tower else ""
    return NamedModule(
        module=module,
        pixels=pixels,
        image_size=size,
        outputs=outputs,
        default_layer=default,
        untrained=frozenset(missing),
        weights_prefix=_TOWER if is_tower else f"{module.base_model_prefix}.",
        notes=(
            f"{where}: {kind} of transformers{part}; the layer is {default} by default{reason}",
        ),
    )


# --- the model -----------------------------------------------------------------------------------


def _read_config(name: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, trust_remote_code=False)


def _check_kind(where: str, config: Any) -> None:
    """Check that transformers can create a model of a configuration.

    Raises:
        InputError: it is a part of others only.
    """
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING:
        raise InputError(
            f"{where}: transformers has no model of {type(config).__name__} alone; write a "
            "function that returns the image encoder, and give --model module:callable"
        )


def _create(name: str, config: Any, pretrained: bool, spec: EncoderSpec) -> tuple[Any, set[str]]:
    """Return a model, and the names of the parameters that its published weights lack."""
    from transformers import AutoModel

    if not pretrained:
        return AutoModel.from_config(config, trust_remote_code=False, **spec.model_kwargs), set()
    # It warns about weights that are missing, which is said in another way.
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model, found = AutoModel.from_pretrained(
            name,
            config=config,
            trust_remote_code=False,
            output_loading_info=True,
            **spec.model_kwargs,
        )
    finally:
        logger.setLevel(level)
    return model, set(found["missing_keys"])


def _use(where: str, name: str, function: Callable[[], Any]) -> Any:
    """Return what a function of transformers returns.

    Raises:
        InputError: it fails.
    """
    try:
        return function()
    except Exception as error:
        raise _explain(where, name, error) from error


def _explain(where: str, name: str, error: Exception) -> InputError:
    text = str(error)
    if "trust_remote_code" in text:
        return InputError(
            f"{where}: it needs code from its repository, which is not run; write a function that "
            "creates it, and give --model module:callable"
        )
    is_folder = Path(name).is_dir()
    files = f"config.json, preprocessor_config.json, and {_WEIGHTS}"
    if is_folder and isinstance(error, OSError) and "no file named" in text:
        return InputError(
            f"{where}: the folder has no weights; put {_WEIGHTS} beside config.json, or give "
            "--weights FILE"
        )
    explained = explain_download(
        error,
        where,
        f"get {files} from {HUB_PAGES}/{name} on another machine, copy them into a folder here, "
        "and give --model FOLDER",
    )
    if explained is not None:
        return explained
    return InputError(
        f"{where}: transformers cannot load it: {type(error).__name__}: "
        f"{get_first_line(error)[:300]}; "
        + (
            "write the folder again with save_pretrained, and check --model-kwargs"
            if is_folder
            else "check the name and --model-kwargs"
        )
    )


def _read_size(config: Any) -> tuple[int, int] | None:
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) else None


def _fix_arguments(module: Any, size: tuple[int, int] | None) -> None:
    """Let a module take images only, also of another size than that of its position embedding."""
    arguments: dict[str, Any] = {"return_dict": True}
    names = inspect.signature(module.forward).parameters
    if "interpolate_pos_encoding" in names and size != _read_size(module.config):
        arguments["interpolate_pos_encoding"] = True
    takes_more = any(each.kind == each.VAR_KEYWORD for each in names.values())
    known = {key: value for key, value in arguments.items() if key in names or takes_more}
    module.forward = functools.partial(module.forward, **known)


def _make_output(module: Any, name: str) -> Callable[[Any], Any]:
    """Return a function from images to one of the outputs of a module."""

    def call(images: Any) -> Any:
        return module(images)[name]

    return call


def _has_pooler(module: Any, size: tuple[int, int] | None, where: str) -> bool:
    """Return whether a module has a pooled output, which only a call tells.

    Raises:
        InputError: the call fails.
    """
    import torch

    height, width = size or (224, 224)
    images = torch.zeros(1, getattr(module.config, "num_channels", 3), height, width)
    try:
        with torch.inference_mode():
            found = module.float().eval()(images)
    except Exception as error:
        raise InputError(
            f"{where}: {type(module).__name__} fails on images of {height}×{width}: "
            f"{get_first_line(error)[:300]}; check --image-size"
        ) from error
    return found.get("pooler_output") is not None


# --- pixels --------------------------------------------------------------------------------------


def _find_pixels(
    where: str, name: str, spec: EncoderSpec
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Return the pixel options that do what the image processor of a model does, and its size.

    Raises:
        InputError: the model has none, and the user does not say how values are prepared; or no
            option does the same.
    """
    settings = _read_settings(where, name)
    if settings is not None:
        return find_pixel_options(settings, f"{where}: its image processor", spec.pixel_options)
    if set(VALUE_OPTIONS) & set(spec.pixel_options):
        return {}, None
    raise InputError(
        f"{where}: it has no preprocessor_config.json, so how to prepare its pixels is unknown; "
        "put that file beside config.json, or give --scale, or --mean and --std"
    )


def _read_settings(where: str, name: str) -> dict[str, Any] | None:
    """Return the settings of an image processor, or None if the model has none."""
    from transformers import AutoImageProcessor

    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in _SETTINGS):
        return None
    try:
        return dict(AutoImageProcessor.from_pretrained(name, trust_remote_code=False).to_dict())
    except Exception as error:
        # What a repository of the hub has, only this error tells.
        if not folder.is_dir() and isinstance(error, OSError) and _SETTINGS[0] in str(error):
            return None
        raise _explain(where, name, error) from error


LIBRARY = Library(
    prefix=HF, package="transformers", extra="transformers", is_folder=_is_folder, load=_load
)
