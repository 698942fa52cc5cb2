# SPDX-License-Identifier: Apache-2.0
"""OpenCLIP: ``open_clip:NAME/PRETRAINED``, ``open_clip:hf-hub:USER/NAME``, or a folder it wrote."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_embed.core.model_names import OPEN_CLIP
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.encoders.torch_models.libraries.base import (
    Library,
    NamedModule,
    explain_unknown_name,
)
from ray_embed.encoders.torch_models.libraries.downloads import HUB_PAGES, explain_download
from ray_embed.encoders.torch_models.libraries.transforms import (
    find_interpolation_options,
    find_value_options,
    refuse_resizing,
    refuse_values,
)
from ray_embed.errors import InputError, get_first_line
from ray_embed.options import VALUE_OPTIONS

# Sources that open_clip accepts before a name.
_HUB, _FOLDER = "hf-hub:", "local-dir:"
_CONFIG = "open_clip_config.json"
_WEIGHTS = "open_clip_model.safetensors or open_clip_pytorch_model.bin"
_WEIGHTS_PATTERNS = ("*.safetensors", "*.bin", "*.pth")
_CONFIG_KEYS = ("embed_dim", "vision_cfg", "text_cfg")
# The image tower in the names of the weights of a whole model.
_TOWER = "visual."
# A text tower takes memory, and may need a download. Only one that has weights to load must fit.
_SMALL_TEXT = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where a model is from.

    Attributes:
        name: what `open_clip.create_model` calls it.
        arguments: more arguments of that function.
        weights: what a note calls the published weights.
        fix: how to go on without a network.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: str = "its weights"
    fix: str


def _is_folder(path: Path) -> bool:
    """Return whether a folder has the description that open_clip's `save_for_hf` writes."""
    return (path / _CONFIG).is_file()


def _load(spec: EncoderSpec, name: str, pretrained: bool) -> NamedModule:
    """Create a model, take its image tower, and find out how open_clip prepares its images.

    Raises:
        InputError: open_clip has no such model or weights, cannot create it with these arguments,
            or cannot download its files; or no option does what it does to images.
    """
    where = f"--model {spec.model_name}"
    if not spec.model.startswith(OPEN_CLIP):
        source = _find_folder(Path(name), pretrained, where)
    elif name.startswith(_HUB):
        source = _find_in_hub(name.removeprefix(_HUB), pretrained, where)
    else:
        source = _find_by_name(spec, name, pretrained, where)
    visual = _create(spec, source, pretrained, where).visual
    config, size = visual.preprocess_cfg, _read_pair(visual.image_size)
    weights = f", with {source.weights}" if pretrained else ""
    return NamedModule(
        module=visual,
        pixels=_find_pixel_options(config, size, f"{where}: open_clip", spec.pixel_options),
        image_size=spec.image_size or size,
        outputs={"pooled": _make_encode(visual)},
        default_layer="pooled",
        weights_prefix=_TOWER,
        notes=(
            f"{where}: open_clip's image tower alone{weights}; the layer pooled is encode_image, "
            "without normalization",
        ),
    )


def _make_encode(visual: Any) -> Callable[[Any], Any]:
    """Return a function that does what `encode_image` does."""

    def encode(images: Any) -> Any:
        output = visual(images)
        # Towers that captions are made from return their tokens, too.
        return output[0] if isinstance(output, tuple) else output

    return encode


# --- sources -------------------------------------------------------------------------------------


def _find_by_name(spec: EncoderSpec, name: str, pretrained: bool, where: str) -> _Source:
    """Find a model by its name, and published weights by their tag after the slash.

    Raises:
        InputError: open_clip has none of this name or tag; or weights are needed, and no tag is
            given.
    """
    import open_clip

    architecture, _, tag = name.partition("/")
    if architecture not in open_clip.list_models():
        raise explain_unknown_name(where, open_clip, architecture)
    tags = [each for model, each in open_clip.list_pretrained() if model == architecture]
    listed = ", ".join(f"{OPEN_CLIP}{architecture}/{each}" for each in tags)
    if not tag and pretrained:
        raise InputError(
            f"{where}: it names no weights; give "
            + (f"one of {listed}; or " if tags else "")
            + "--weights FILE, or --weights random"
        )
    if tag and not open_clip.is_pretrained_cfg(architecture, tag):
        raise InputError(
            f"{where}: open_clip has no weights {tag!r} of {architecture}; "
            + (f"it has {listed}" if tags else "it has none: omit the tag, and give --weights")
        )
    config = open_clip.get_pretrained_cfg(architecture, tag)
    _check_activation(spec, architecture, tag, where)
    # Without the weights, the pixels are nevertheless those that they were trained with.
    arguments = {"pretrained": tag} if pretrained else {"force_preprocess_cfg": config}
    place = config.get("hf_hub") or config.get("url") or ""
    page, _, file = place.rpartition("/")
    if not place.startswith("http"):
        place = f"{HUB_PAGES}/{page}"
    return _Source(
        name=architecture,
        arguments=arguments,
        weights=f"its weights {tag}",
        fix=f"get {file or _WEIGHTS} from {place} on another machine, copy it here, and add "
        "--weights FILE",
    )


def _check_activation(spec: EncoderSpec, architecture: str, tag: str, where: str) -> None:
    """Refuse weights of a model with QuickGELU for the same model with GELU.

    open_clip computes other features with them than those they were trained for, and warns. Other
    image towers than its own ViT do not have this activation.

    Raises:
        InputError: the model is one of these.
    """
    import open_clip

    if "quick_gelu" in spec.model_kwargs or not tag:
        return
    quick = f"{architecture}-quickgelu"
    needs_quick = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
    config = open_clip.get_model_config(architecture)
    vision, is_quick = config["vision_cfg"], config.get("quick_gelu", False)
    is_vit = not vision.get("timm_model_name") and isinstance(vision.get("layers", 0), int)
    if is_vit and needs_quick and not is_quick and quick in open_clip.list_models():
        raise InputError(
            f"{where}: the weights {tag} were trained with QuickGELU, and {architecture} has GELU; "
            f"give --model {OPEN_CLIP}{quick}/{tag} (or, for other features than these weights "
            "were trained for, --model-kwargs '{\"quick_gelu\": false}')"
        )


def _find_folder(folder: Path, pretrained: bool, where: str) -> _Source:
    """Find a model that open_clip wrote.

    Raises:
        InputError: its description is damaged, or its weights are needed and missing.
    """
    _check_config(folder / _CONFIG, where)
    if pretrained and not any(any(folder.glob(pattern)) for pattern in _WEIGHTS_PATTERNS):
        raise InputError(
            f"{where}: the folder has no weights; put {_WEIGHTS} beside {_CONFIG}, or give "
            "--weights FILE"
        )
    return _Source(
        name=f"{_FOLDER}{folder}",
        fix="give the file of its weights with --weights FILE, which does not need its text tower",
    )


def _find_in_hub(name: str, pretrained: bool, where: str) -> _Source:
    """Download the description of a model in the hub, and its weights if they are needed.

    Raises:
        InputError: they cannot be downloaded, or the description is damaged.
    """
    from huggingface_hub import hf_hub_download
    from open_clip.pretrained import download_pretrained_from_hf

    fix = (
        f"get {_CONFIG} and {_WEIGHTS} from {HUB_PAGES}/{name} on another machine, copy them into "
        "a folder here, and give --model FOLDER"
    )
    try:
        file = Path(hf_hub_download(name, _CONFIG))
        if pretrained:
            # create_model would hide why it fails.
            download_pretrained_from_hf(name)
    except Exception as error:
        raise _explain(where, {}, error, fix) from error
    _check_config(file, where)
    # Without weights, create_model would download them nevertheless.
    return _Source(name=f"{_HUB}{name}" if pretrained else f"{_FOLDER}{file.parent}", fix=fix)


def _check_config(file: Path, where: str) -> None:
    """Check that a file describes a model.

    Raises:
        InputError: it does not.
    """

    def refuse(what: str) -> InputError:
        return InputError(
            f"{where}: {file.name} {what}; write the folder again with save_for_hf of "
            "open_clip.push_to_hf_hub"
        )

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(f"is no JSON file ({get_first_line(error)[:200]})") from error
    model = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise refuse("lacks 'model_cfg', which describes the model")
    missing = [key for key in _CONFIG_KEYS if key not in model]
    if missing:
        raise refuse(f"lacks {', '.join(map(repr, missing))} in 'model_cfg'")
    if not isinstance(content.get("preprocess_cfg", {}), dict):
        raise refuse("has a 'preprocess_cfg' that is no object")


# --- the model -----------------------------------------------------------------------------------


def _create(spec: EncoderSpec, source: _Source, pretrained: bool, where: str) -> Any:
    """Create a model, with its weights or with random ones.

    Raises:
        InputError: open_clip cannot.
    """
    import open_clip

    given: dict[str, Any] = {}
    if spec.image_size is not None:
        height, width = spec.image_size
        # Some towers take a number only.
        given["force_image_size"] = height if height == width else (height, width)
    given |= spec.model_kwargs
    loading: dict[str, Any] = (
        {"require_pretrained": True}
        if pretrained
        else {"load_weights": False, "text_cfg": _SMALL_TEXT}
    )
    try:
        with _keep_logging():
            return open_clip.create_model(source.name, **(source.arguments | loading | given))
    except Exception as error:
        raise _explain(where, given, error, source.fix) from error


@contextlib.contextmanager
def _keep_logging() -> Iterator[None]:
    """Keep open_clip from setting up logging, and from printing that random weights are random."""
    handler, root = logging.NullHandler(), logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _explain(where: str, given: dict[str, Any], error: Exception, fix: str) -> InputError:
    explained = explain_download(error, where, fix)
    if explained is not None:
        return explained
    arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return InputError(
        f"{where}: open_clip cannot create it{f' with ({arguments})' if given else ''}: "
        f"{type(error).__name__}: {get_first_line(error)[:300]}; check --image-size and "
        "--model-kwargs"
    )


def _read_pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return int(height), int(width)


# --- pixels --------------------------------------------------------------------------------------


def _find_pixel_options(
    config: dict[str, Any], size: tuple[int, int], where: str, given: tuple[str, ...]
) -> dict[str, Any]:
    """Return the pixel options that do what open_clip's transform for evaluation does.

    See `open_clip.transform.image_transform`.

    Raises:
        InputError: no option does the same.
    """
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    options: dict[str, Any] = {}
    if not set(VALUE_OPTIONS) & set(given):
        mean = _read_numbers(config, "mean", OPENAI_DATASET_MEAN, where)
        options |= find_value_options(mean, _read_numbers(config, "std", OPENAI_DATASET_STD, where))
    if config["mode"] != "RGB":
        refuse_values(where, f"converts images to the mode {config['mode']!r}", given)
    method = config["interpolation"] or "bicubic"
    # Training takes a random method, and evaluation this one.
    method = "bicubic" if method == "random" else method
    options |= find_interpolation_options(method, where, given)
    match config["resize_mode"] or "shortest":
        case "squash":
            options["resize"] = None
        case "shortest" if size[0] == size[1]:
            options["crop_fraction"] = 1.0
        case "shortest":
            refuse_resizing(where, f"crops images to {size[0]}×{size[1]}, no square", given)
        case "longest":
            level = config["fill_color"]
            refuse_resizing(where, f"pads images with the level {level} after resizing", given)
        case mode:
            refuse_resizing(where, f"resizes images in the mode {mode!r}", given)
    return options


def _read_numbers(
    config: dict[str, Any], name: str, default: tuple[float, ...], where: str
) -> tuple[float, ...]:
    """Return one number per channel.

    Raises:
        InputError: the description has something else.
    """
    value = config[name] or default
    numbers = value if isinstance(value, (tuple, list)) else (value,) * len(default)
    if len(numbers) == len(default) and all(isinstance(each, (int, float)) for each in numbers):
        return tuple(float(each) for each in numbers)
    raise InputError(
        f"{where} prepares pixels with {name} {value!r}, which is not one number per channel; give "
        f"--mean and --std, or correct its {_CONFIG}"
    )


LIBRARY = Library(
    prefix=OPEN_CLIP, package="open_clip", extra="open-clip", is_folder=_is_folder, load=_load
)
