# SPDX-License-Identifier: Apache-2.0
"""Express the image processors of transformers by the pixel options of a run."""

import math
from typing import Any

from ray_embed.encoders.torch_models.libraries.transforms import (
    find_interpolation_options,
    find_value_options,
    refuse_resizing,
    refuse_values,
)
from ray_embed.options import RESIZE_OPTIONS, VALUE_OPTIONS

# Processors that do only what their settings say.
_PLAIN = frozenset(
    f"{name}ImageProcessor"
    for name in (
        *("Beit", "Bit", "Blip", "CLIP", "ChineseCLIP", "DPT", "DeiT", "MobileNetV1"),
        *("MobileNetV2", "OwlViT", "Pvt", "Segformer", "Siglip", "Tipsv2", "ViT"),
    )
)
# Processors that do more.
_CONVNEXT, _LEVIT, _POOLFORMER = (
    f"{name}ImageProcessor" for name in ("ConvNext", "Levit", "PoolFormer")
)
_EFFICIENTNET, _MOBILEVIT, _DINOV3 = (
    f"{name}ImageProcessor" for name in ("EfficientNet", "MobileViT", "DINOv3ViT")
)
_KNOWN = _PLAIN | {_CONVNEXT, _LEVIT, _POOLFORMER, _EFFICIENTNET, _MOBILEVIT, _DINOV3}
# Earlier versions end names in other ways.
_ENDINGS = {"Fast": "", "Pil": "", "FeatureExtractor": "ImageProcessor"}
# From this size on, ConvNeXt stretches images.
_CONVNEXT_STRETCHES = 384
# LeViT resizes the short side to its setting by this factor.
_LEVIT_FACTOR = 256 / 224

_METHODS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_STEPS = frozenset(
    {
        *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"),
        *("do_flip_channel_order", "do_pad"),
        # Labels are not images.
        *("do_reduce_labels", "do_reduce_label"),
    }
)
_RESIZING = {
    "size_divisor": "resizes images to multiples of {}",
    "ensure_multiple_of": "resizes images to multiples of {}",
    "keep_aspect_ratio": "keeps the aspect ratio of images (keep_aspect_ratio)",
    "max_num_patches": "cuts images of any size into at most {} patches",
    "max_patches": "cuts images of any size into at most {} patches",
}


def find_pixel_options(
    settings: dict[str, Any], where: str, given: tuple[str, ...]
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Return the pixel options that do what an image processor of transformers does.

    Args:
        settings: what its `to_dict` returns.
        where: what error messages begin with.
        given: the pixel options that the user has given, which replace those of the processor.

    Returns:
        The options, by their names in `RunConfig`; and the height and width of processed images, or
        None if they are unknown.

    Raises:
        InputError: no option does the same.
    """
    kind = _find_kind(settings)
    _refuse_other_steps(settings, kind, where, given)
    options: dict[str, Any] = {}
    if not set(VALUE_OPTIONS) & set(given):
        options |= _find_values(settings, kind)
    resized, cropped = _find_resized(settings, kind), _find_cropped(settings, kind)
    if not set(RESIZE_OPTIONS) & set(given):
        if (what := _find_inexpressible(settings, resized, cropped)) is not None:
            refuse_resizing(where, what, given)
        options |= _find_resizing(resized, cropped)
    if cropped is not None and "resize" not in given:
        options["crop_corner"] = "floor"
    options |= find_interpolation_options(_find_method(settings, kind), where, given)
    if settings.get("do_flip_channel_order"):
        options["channel_order"] = "bgr"
    size = cropped or (resized if isinstance(resized, tuple) else None)
    return options, size if kind in _KNOWN else None


def _find_kind(settings: dict[str, Any]) -> str:
    """Return the name of a processor's class, without what says how it computes."""
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    for ending, instead in _ENDINGS.items():
        if kind.endswith(ending):
            kind = kind.removesuffix(ending) + instead
    return str(kind)


def _refuse_other_steps(
    settings: dict[str, Any], kind: str, where: str, given: tuple[str, ...]
) -> None:
    """Refuse what no option can express.

    Raises:
        InputError: the processor does such a thing, and the user has given no other way.
    """
    for name, what in _RESIZING.items():
        value = settings.get(name)
        if value and (value is True or value > 1):
            refuse_resizing(where, what.format(value), given)
    for name, value in settings.items():
        if name.startswith("do_") and value and name not in _STEPS:
            refuse_resizing(where, f"has the step {name}", given)
            refuse_values(where, f"has the step {name}", given)
    if kind not in _KNOWN:
        name = kind or "of an unknown class"
        refuse_resizing(where, f"is {name}, whose way of resizing is not known", given)
        refuse_values(where, f"is {name}, whose way of preparing values is not known", given)


def _find_values(settings: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the options for the values of pixels.

    The processor's values are pixels from 0 to 1 times a gain, minus an offset, normalized. The
    options' values are pixels from 0 to 1, normalized.
    """
    rescales = bool(settings.get("do_rescale"))
    # A rescale factor is often rounded.
    gain = 255 * float(settings["rescale_factor"]) if rescales else 255.0
    gain = float(round(gain)) if math.isclose(gain, round(gain), rel_tol=1e-6) else gain
    offset = 1.0 if rescales and kind == _EFFICIENTNET and settings.get("rescale_offset") else 0.0
    # MobileViT has this setting, but does not read it.
    normalizes = bool(settings.get("do_normalize")) and kind != _MOBILEVIT
    divides = kind == _EFFICIENTNET and bool(settings.get("include_top"))
    mean = _list(settings["image_mean"]) if normalizes else [0.0]
    power = normalizes + divides
    std = [number**power for number in _list(settings["image_std"])] if power else [1.0]
    if not rescales and not power:
        return {"scale": "none", "mean": (), "std": ()}
    if offset and gain == 2 and not power:
        return {"scale": "symmetric", "mean": (), "std": ()}
    return find_value_options(
        [(offset + number) / gain for number in mean], [number / gain for number in std]
    )


def _list(numbers: Any) -> list[float]:
    """Return one number, or one for each channel, as a list."""
    return [float(number) for number in numbers] if hasattr(numbers, "__len__") else [numbers]


def _find_resized(settings: dict[str, Any], kind: str) -> tuple[int, int] | int | None:
    """Return the height and width to which images are stretched, or that of their short side.

    If the processor does something else, return None.
    """
    size = _find_sides(settings.get("size"))
    if not settings.get("do_resize"):
        return None
    if set(size) == {"height", "width"}:
        sides = size["height"], size["width"]
        if kind != _POOLFORMER or settings.get("crop_pct") is None:
            return sides
        height, width = (int(side / settings["crop_pct"]) for side in sides)
        return height if sides[0] == sides[1] else (height, width)
    if set(size) != {"shortest_edge"}:
        return None
    side = size["shortest_edge"]
    if kind == _CONVNEXT and side >= _CONVNEXT_STRETCHES:
        return side, side
    if kind in (_CONVNEXT, _POOLFORMER) and settings.get("crop_pct") is not None:
        return int(side / settings["crop_pct"])
    return int(_LEVIT_FACTOR * side) if kind == _LEVIT else side


def _find_cropped(settings: dict[str, Any], kind: str) -> tuple[int, int] | None:
    """Return the height and width of the center crop, or None if there is none."""
    size = _find_sides(settings.get("size"))
    if settings.get("do_center_crop"):
        size = _find_sides(settings.get("crop_size"))
        return (size["height"], size["width"]) if set(size) == {"height", "width"} else None
    if kind == _CONVNEXT and settings.get("do_resize") and "shortest_edge" in size:
        side = size["shortest_edge"]
        return (side, side) if side < _CONVNEXT_STRETCHES else None
    return None


def _find_sides(size: Any) -> dict[str, int]:
    """Return the sides that a size names."""
    if not isinstance(size, dict):
        return {}
    return {name: int(side) for name, side in size.items() if side is not None}


def _find_inexpressible(
    settings: dict[str, Any],
    resized: tuple[int, int] | int | None,
    cropped: tuple[int, int] | None,
) -> str | None:
    """Return what the processor does to the size of images that no option can express, if so."""
    if settings.get("do_pad"):
        padded = _find_sides(settings.get("pad_size"))
        if padded and (padded.get("height"), padded.get("width")) != (cropped or resized):
            return f"pads images to {padded}"
    if resized is None:
        return (
            f"resizes images to {settings.get('size')}"
            if settings.get("do_resize")
            else ("does not resize images")
        )
    crops = f"crops them to {cropped[0]}×{cropped[1]}" if cropped else "does not crop them"
    if isinstance(resized, tuple):
        stretches = f"stretches images to {resized[0]}×{resized[1]}"
        return None if cropped in (None, resized) else f"{stretches} and {crops}"
    resizes = f"resizes the short side of images to {resized}"
    if cropped is None or cropped[0] != cropped[1]:
        return f"{resizes} and {crops}"
    return f"{resizes} and pads them to {cropped[0]}" if cropped[0] > resized else None


def _find_resizing(
    resized: tuple[int, int] | int | None, cropped: tuple[int, int] | None
) -> dict[str, Any]:
    """Return the options for the size of images, which can be expressed."""
    if isinstance(resized, int) and cropped is not None:
        return {"crop_fraction": cropped[0] / resized}
    return {"resize": None}


def _find_method(settings: dict[str, Any], kind: str) -> str:
    """Return the name of the interpolation; bilinear is the default."""
    resample = settings.get("resample")
    if resample is None:
        return "bilinear"
    method = _METHODS.get(resample, str(resample))
    # Other methods leave the range of pixels, which DINOv3 does not clip.
    return f"unclipped {method}" if kind == _DINOV3 and method != "bilinear" else method
