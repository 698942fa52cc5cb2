# SPDX-License-Identifier: Apache-2.0
"""PyTorch Image Models: ``timm:NAME``, or a folder that timm wrote."""

from pathlib import Path
from typing import Any

from ray_embed.encoders.spec import EncoderSpec
from ray_embed.encoders.torch_models.libraries.base import (
    Library,
    NamedModule,
    explain_unknown_name,
)
from ray_embed.encoders.torch_models.libraries.downloads import explain_download
from ray_embed.encoders.torch_models.libraries.transforms import (
    find_interpolation_options,
    find_value_options,
    refuse_resizing,
)
from ray_embed.encoders.unsupported_formats import read_json
from ray_embed.errors import InputError, get_first_line
from ray_embed.options import VALUE_OPTIONS

PREFIX = "timm:"
# Sources that timm accepts before a name.
_HUB, _FOLDER = "hf-hub:", "local-dir:"


def _is_folder(path: Path) -> bool:
    """Return whether a folder has the description that timm's `save_for_hf` writes."""
    file = path / "config.json"
    if not file.is_file():
        return False
    content = read_json(file)
    return "architecture" in content and "pretrained_cfg" in content


def _load(spec: EncoderSpec, name: str, pretrained: bool) -> NamedModule:
    """Create a model without its classifier, and find out how timm prepares its images.

    Raises:
        InputError: timm has no such model, cannot create it with these arguments, or cannot
            download its weights; or no option does what it does to images.
    """
    import timm

    where = f"--model {spec.model_name}"
    if not spec.model.startswith(PREFIX):
        name = f"{_FOLDER}{name}"
    if ":" not in name:
        _check_name(name, where)
    arguments = {"num_classes": 0, **_find_size_arguments(spec, name), **spec.model_kwargs}
    try:
        module = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        raise _explain(where, name, arguments, error) from error
    config = timm.data.resolve_model_data_config(module)
    known = module.pretrained_cfg
    described = f"{known.get('architecture', name)} of timm"
    # A folder names the weights that its training began with.
    tag = "" if name.startswith(_FOLDER) else str(known.get("tag") or "")
    weights = f", with its weights {tag}".rstrip() if pretrained else ""
    return NamedModule(
        module=module,
        pixels=_find_pixel_options(config, f"{where}: timm", spec.pixel_options),
        image_size=spec.image_size or tuple(config["input_size"][1:]),
        outputs={"pooled": module, "forward_features": module.forward_features},
        default_layer="pooled",
        notes=(
            f"{where}: {described} without its classifier{weights}; --layer forward_features is "
            "what it pools",
        ),
    )


def _check_name(name: str, where: str) -> None:
    """Check that timm has a model, and published weights of the tag after the dot.

    Raises:
        InputError: it does not.
    """
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise explain_unknown_name(where, timm, architecture)
    tags = [each.partition(".")[2] for each in timm.list_pretrained(architecture)]
    tags = [each for each in tags if each]
    if tag and tag not in tags:
        raise InputError(
            f"{where}: timm has no weights {tag!r} of {architecture}; "
            + (f"it has {', '.join(tags)}" if tags else "it has none: omit the tag")
        )


def _find_size_arguments(spec: EncoderSpec, name: str) -> dict[str, Any]:
    """Return what sets the image size, for architectures that are made for one size."""
    import timm

    if spec.image_size is None:
        return {}
    if name.startswith(_FOLDER):
        architecture = read_json(Path(name.removeprefix(_FOLDER)) / "config.json")["architecture"]
    else:
        architecture = name.rpartition("/")[2].removeprefix(_HUB).partition(".")[0]
    config = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    if config is None or not config.fixed_input_size:
        return {}
    return {"img_size": spec.image_size}


def _find_pixel_options(
    config: dict[str, Any], where: str, given: tuple[str, ...]
) -> dict[str, Any]:
    """Return the pixel options that do what timm's transform for evaluation does.

    See `timm.data.transforms_factory.transforms_imagenet_eval`.

    Raises:
        InputError: no option does the same.
    """
    options: dict[str, Any] = {}
    if not set(VALUE_OPTIONS) & set(given):
        options |= find_value_options(config["mean"], config["std"])
    options |= find_interpolation_options(config["interpolation"], where, given)
    fraction = config["crop_pct"]
    match config["crop_mode"]:
        case "center":
            options["crop_fraction"] = float(fraction)
        case "squash" if fraction == 1.0:
            options["resize"] = None
        case "squash":
            refuse_resizing(where, f"stretches images and keeps {fraction} of them", given)
        case mode:
            refuse_resizing(where, f"crops images in the mode {mode!r}", given)
    return options


def _explain(where: str, name: str, arguments: dict[str, Any], error: Exception) -> InputError:
    explained = explain_download(
        error,
        where,
        "create the model elsewhere, write it with timm.models.save_for_hf(model, FOLDER), copy "
        "the folder, and give --model FOLDER; or give --weights FILE",
    )
    if explained is not None:
        return explained
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return InputError(
        f"{where}: timm cannot create it with ({given}): {type(error).__name__}: "
        f"{get_first_line(error)[:300]}; check --image-size and --model-kwargs"
    )


LIBRARY = Library(prefix=PREFIX, package="timm", extra="timm", is_folder=_is_folder, load=_load)
