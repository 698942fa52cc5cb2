# SPDX-License-Identifier: Apache-2.0
"""Choose the preprocessing for each split, and describe it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray_embed.config import RunConfig
from ray_embed.encoders.spec import Encoder
from ray_embed.errors import InputError
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.options import (
    OPTIONS,
    RESIZE_OPTIONS,
    VALUE_OPTIONS,
    Group,
    format_flag,
    get_default,
)
from ray_embed.planning import SplitPlan

# If the full pixel range spans less than this at the first layer, pixels were probably rescaled
# twice.
_MIN_INPUT_RANGE = 0.05
# Float images with a maximum below this are not in [0, 255].
_MAX_UNIT_RANGE = 2.0
_SCALES = {"unit": "scaled to [0, 1]", "symmetric": "scaled to [-1, 1]"}
# The ends of the range of pixels after each scale.
_SCALED_RANGES = {"unit": (0.0, 1.0), "symmetric": (-1.0, 1.0)}
# If pixels reach the first layer with a wider range than this, they were probably not rescaled.
_MAX_INPUT_RANGE = 16.0
# Options that decide the same thing: if the user gives one of them, a model's library decides none.
_ALONE = ("crop_corner", "interpolation", "antialias", "jpeg_dct", "channel_order")
_GROUPS = (VALUE_OPTIONS, RESIZE_OPTIONS, *((name,) for name in _ALONE))
_COLOR_MODES = {1: "grayscale", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Explanation:
    """Messages for the user about the preprocessing."""

    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def list_given_options(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the options that the user has given, of those a library may decide."""
    names = [name for group in _GROUPS for name in group if name in config.model_fields_set]
    return tuple(name for name in names if getattr(config, name) not in (None, ()))


def adopt_options(config: RunConfig, encoder: Encoder) -> RunConfig:
    """Return the options with those of the encoder's library, where the user has given none."""
    named = encoder.spec.kept.pixels if encoder.spec.kept is not None else {}
    given = set(list_given_options(config))
    adopted = {
        name: named[name]
        for names in _GROUPS
        if not given & set(names)
        for name in names
        if name in named
    }
    return config.model_copy(update=adopted) if adopted else config


def _list_adopted(config: RunConfig, encoder: Encoder) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield what the encoder's library says of each group of options, and whether it is used."""
    named = encoder.spec.kept.pixels if encoder.spec.kept is not None else {}
    for names in _GROUPS:
        if not any(name in named for name in names):
            continue
        wanted = {name: named.get(name, get_default(name)) for name in names}
        yield wanted, all(getattr(config, name) == value for name, value in wanted.items())


def _adopts_values(config: RunConfig, encoder: Encoder) -> bool:
    """Return whether the encoder's library decides how pixels become the values of its input."""
    return any(used and "preprocess" in wanted for wanted, used in _list_adopted(config, encoder))


def _explain_replaced(config: RunConfig, encoder: Encoder) -> Iterator[str]:
    """Yield notes on the options that replace what the encoder's library does."""
    for wanted, used in _list_adopted(config, encoder):
        if used:
            continue
        given = " ".join(
            _format_option(name, getattr(config, name))
            for name in wanted
            if getattr(config, name) != get_default(name)
        )
        instead = " ".join(
            _format_option(name, value)
            for name, value in wanted.items()
            if value != get_default(name)
        )
        yield (
            f"{given or 'the default'} is used instead of {instead or 'the default'}, which "
            f"{encoder.spec.model_name} was trained with"
        )


def _format_option(name: str, value: Any) -> str:
    if value is True:
        return format_flag(name)
    if value is False:
        return f"no {format_flag(name)}"
    return f"{format_flag(name)} {_format_value(value)}"


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{number:.4g}" for number in value)
    return getattr(value, "__qualname__", None) or str(value)


def has_files(split: SplitPlan) -> bool:
    """Return whether a split consists of image files."""
    return split.image_shape is None


def has_floats(split: SplitPlan) -> bool:
    """Return whether a split consists of float arrays, which are not scaled."""
    return split.image_shape is not None and split.image_dtype != "uint8"


def find_highest_level(config: RunConfig) -> int:
    """Return the level of white in image files."""
    return int(2**config.depth - 1)


def decide_scale(config: RunConfig, encoder: Encoder, floats: bool = False) -> str:
    """Return the scale from the options, or the default for the encoder.

    Args:
        config: the options.
        encoder: the encoder.
        floats: whether the images are float arrays.
    """
    if config.scale is not None:
        return config.scale
    if floats or config.preprocess is not None:
        return "none"
    asks_for_unit = bool(config.mean or config.std)
    return "none" if encoder.rescaling.expects_levels and not asks_for_unit else "unit"


def make_pixel_spec(config: RunConfig, split: SplitPlan, encoder: Encoder) -> PixelSpec:
    """Return the preprocessing of a split."""
    floats = has_floats(split)
    resized = not floats or config.image_size is not None
    files = has_files(split)
    return PixelSpec(
        shape=encoder.image_shape,
        scale=decide_scale(config, encoder, floats),
        resize=(config.resize or "stretch") if resized else None,
        crop_fraction=config.crop_fraction,
        crop_corner=config.crop_corner,
        interpolation=config.interpolation,
        antialias=config.antialias,
        mean=config.mean,
        std=config.std,
        reverse_channels=config.channel_order == "bgr",
        repeat_channel=config.channels == "repeat",
        apply_orientation=config.exif_orientation,
        max_pixels=config.max_pixels,
        takes_bytes=encoder.takes_bytes,
        depth=config.depth if files else 8,
        float_scale=decide_scale(config, encoder, floats=True),
        jpeg_size=_find_jpeg_size(config, encoder) if files else None,
        is_jpeg_accurate=files and config.jpeg_dct == "accurate",
    )


def _find_jpeg_size(config: RunConfig, encoder: Encoder) -> tuple[int, int] | None:
    """Return the size (H, W) below which a JPEG is not decoded, or None to decode its full size."""
    if config.decode_scale is None:
        return None
    height, width = (
        math.ceil(side / (config.crop_fraction or 1)) for side in encoder.image_shape[:2]
    )
    # A turned image has its sides swapped, and a crop has the short side of the encoder's input.
    longest = max(height, width)
    is_square = config.exif_orientation or config.crop_fraction is not None
    return (longest, longest) if is_square else (height, width)


def make_identity(
    config: RunConfig, splits: tuple[SplitPlan, ...], encoder: Encoder
) -> dict[str, Any]:
    """Return the preprocessing that depends on both options and encoder, for the run identity."""
    scale: str = config.scale or "default"
    chosen_here = config.scale is None and config.preprocess is None
    levels = any(not has_floats(split) for split in splits)
    if chosen_here and levels and decide_scale(config, encoder) == "none":
        # Part of the identity of runs, so these words stay.
        scale = f"none, as the encoder rescales its input ({encoder.rescaling.describe()})"
    content: dict[str, Any] = {"scale": scale}
    channels = encoder.image_shape[2]
    if channels != 3 and any(has_files(split) for split in splits):
        content["color mode"] = _COLOR_MODES.get(channels, str(channels))
    return content


def check(config: RunConfig, splits: tuple[SplitPlan, ...], encoder: Encoder) -> None:
    """Check that the preprocessing options fit the encoder.

    Raises:
        InputError: the number of channels, the size or the scale does not fit.
    """
    if encoder.takes_bytes:
        _check_takes_files(config, splits, encoder)
        return
    model = f"--model {encoder.spec.model_name}"
    channels = encoder.image_shape[2]
    for option, numbers in (("--mean", config.mean), ("--std", config.std)):
        if len(numbers) not in (0, 1, channels):
            raise InputError(
                f"{option} {','.join(f'{number:g}' for number in numbers)}: {len(numbers)} "
                f"values, but the encoder takes {channels} channels; give one value, or one per "
                "channel"
            )
    if config.channel_order == "bgr" and channels != 3:
        raise InputError(f"--channel-order bgr: {model} takes {channels} channels, not 3")
    rescales = config.scale in ("unit", "symmetric") or config.mean or config.std
    if encoder.rescaling.takes_integers and rescales:
        raise InputError(
            f"{model}: its input has type {encoder.rescaling.dtype}, so pixels must remain "
            "integers from 0 to 255; remove --scale, --mean and --std"
        )
    if config.depth > 8 and encoder.rescaling.dtype == "uint8":
        raise InputError(f"--depth {config.depth}: {model} takes uint8 images; use --depth 8")
    for split in splits:
        _check_shape(config, split, encoder)


def _check_takes_files(config: RunConfig, splits: tuple[SplitPlan, ...], encoder: Encoder) -> None:
    """Check that sources and options are compatible with an encoder that takes encoded image files.

    Raises:
        InputError: a source provides arrays, or a preprocessing option is set.
    """
    what = f"--model {encoder.spec.model_name} takes encoded image files"
    for split in splits:
        if not has_files(split):
            raise InputError(
                f"--source {split.name}={split.root}: the source provides arrays, but {what}; use "
                "a folder of images or a listing, or export a model that takes decoded images (N, "
                "H, W, C)"
            )
    for name, option in OPTIONS.items():
        value = getattr(config, name)
        refused = option.group is Group.PIXELS and name != "preprocess"
        if refused and value != get_default(name):
            raise InputError(
                f"{format_flag(name)} {value}: {what} and decodes, resizes and scales them itself; "
                "remove the option"
            )


def _check_shape(config: RunConfig, split: SplitPlan, encoder: Encoder) -> None:
    height, width, channels = encoder.image_shape
    shape = split.image_shape
    if shape is None:
        # TIFF files may have any number of channels; others are rejected.
        return
    where = f"--source {split.name}={split.root}"
    sizes = f"the images are {shape[0]}×{shape[1]}×{shape[2]}, but the encoder takes "
    sizes += f"{height}×{width}×{channels}"
    if shape[2] != channels and not (shape[2] == 1 and channels == 3 and config.channels):
        raise InputError(f"{where}: {sizes}; {_suggest_channels(shape[2], channels)}")
    resized = config.image_size is not None or split.image_dtype == "uint8"
    if shape[:2] != (height, width) and not resized:
        raise InputError(
            f"{where}: {sizes}; use --image-size {height},{width} to resize float images"
        )


def _suggest_channels(channels: int, wanted: int) -> str:
    if (channels, wanted) == (1, 3):
        return "use --channels repeat to convert grayscale to RGB"
    if (channels, wanted) == (3, 1):
        return "convert the images to grayscale first, for example with tf.image.rgb_to_grayscale"
    return f"use arrays with {wanted} channels"


def explain(config: RunConfig, splits: tuple[SplitPlan, ...], encoder: Encoder) -> Explanation:
    """Return notes that describe the preprocessing, and warnings about likely mistakes."""
    if encoder.takes_bytes:
        return Explanation()
    notes, warnings = [], []
    rescaling, scale = encoder.rescaling, decide_scale(config, encoder)
    levels = any(not has_floats(split) for split in splits)
    highest = find_highest_level(config)
    if levels:
        notes.append(f"pixels: {describe(config, splits, encoder)}")
    notes += _explain_replaced(config, encoder)
    if levels and config.preprocess is None and rescaling.expects_levels:
        if scale == "none" and config.scale is None:
            why = "takes whole numbers" if rescaling.takes_integers else "rescales its input itself"
            notes.append(f"encoder {why} ({rescaling.describe()}): pixels are given as 0–{highest}")
        elif scale != "none":
            asked = f"--scale {scale}" if config.scale else "--mean or --std"
            warnings.append(
                f"{asked}: the encoder rescales its input itself ({rescaling.describe()}), so "
                "pixels are rescaled twice; use --scale none unless this is intended"
            )
    elif levels and (arriving := _find_arriving_range(config, encoder)) is not None:
        low, high = arriving
        if high - low < _MIN_INPUT_RANGE:
            warnings.append(
                f"pixels from 0 to {highest} reach the encoder's first layer as {low:.3g} to "
                f"{high:.3g}, a very narrow range: are they scaled twice?"
            )
    if config.depth > 8 and config.preprocess is None:
        _, high = _find_arriving_range(config, encoder) or (0, 0)
        if high > _MAX_INPUT_RANGE:
            warnings.append(
                f"--depth {config.depth}: pixels from 0 to {highest} reach the encoder's first "
                f"layer as values up to {high:.3g}; use --scale if it was trained on others"
            )
    if config.crop_fraction is not None and not config.antialias:
        notes.append(
            "--crop-fraction without --antialias differs from torchvision and timm, which "
            "antialias when downscaling; add --antialias to match them"
        )
    untouched = config.scale is None and not config.mean and not config.std
    if levels and encoder.advice and config.preprocess is None and untouched:
        notes.append(encoder.advice)
    return Explanation(tuple(notes), tuple(warnings))


def describe(config: RunConfig, splits: tuple[SplitPlan, ...], encoder: Encoder) -> str:
    """Describe the preprocessing of uint8 images in one line."""
    height, width, channels = encoder.image_shape
    highest = find_highest_level(config)
    parts = []
    if any(has_files(split) for split in splits):
        depth = f" of {config.depth} bits" if config.depth > 8 else ""
        parts.append(f"{_COLOR_MODES.get(channels, f'{channels}-channel')} files{depth}")
    if any(not has_files(split) and not has_floats(split) for split in splits):
        parts.append("uint8 arrays")
    how: str = config.resize or "stretch"
    if config.crop_fraction:
        rounded = ", corner rounded down" if config.crop_corner == "floor" else ""
        how = f"center crop after resizing{rounded}"
    filtered = ", antialiased" if config.antialias else ""
    parts.append(f"{height}×{width} ({how}, {config.interpolation}{filtered})")
    library = f", as {encoder.spec.model_name} expects"
    adopted = library if _adopts_values(config, encoder) else ""
    if config.preprocess is not None:
        function = config.preprocess if adopted else "--preprocess"
        parts.append(f"given as 0–{highest} to {function}{adopted}")
    else:
        normalized = config.mean or config.std
        scaled = _SCALES.get(decide_scale(config, encoder), f"given as 0–{highest}")
        parts.append(f"{scaled}{'' if normalized else adopted}")
    if config.mean or config.std:
        mean, std = _format_value(config.mean or (0.0,)), _format_value(config.std or (1.0,))
        numbers = f"mean {mean} and std {std}{adopted}"
        parts.append(f"normalized by {numbers if adopted else '--mean and --std'}")
    if config.channel_order == "bgr":
        parts.append("BGR")
    if config.decode_scale is not None:
        parts.append("JPEG files decoded at a fraction of their size")
    if config.jpeg_dct == "accurate":
        parts.append("JPEG files decoded accurately, as Pillow does")
    return ", ".join(parts)


def _find_arriving_range(config: RunConfig, encoder: Encoder) -> tuple[float, float] | None:
    """Return the range of pixels at the encoder's first layer with weights."""
    rescaling = encoder.rescaling
    if not rescaling.factors:
        return None
    whole = (0.0, float(find_highest_level(config)))
    ends = [
        low + slope * value
        for slope, low in zip(rescaling.factors, rescaling.offsets, strict=True)
        for value in _SCALED_RANGES.get(decide_scale(config, encoder), whole)
    ]
    return min(ends), max(ends)


def find_unit_warning(
    split: str, low: float, high: float, config: RunConfig, encoder: Encoder
) -> str | None:
    """Return a warning if float arrays are not in the range that the encoder's library expects.

    Args:
        split: the split's name.
        low: the minimum of its first images.
        high: their maximum.
        config: the options.
        encoder: the encoder.
    """
    if not _adopts_values(config, encoder) or high > _MAX_UNIT_RANGE:
        return None
    return (
        f"{split}: float images have values from {low:.3g} to {high:.3g}, but are prepared for "
        f"{encoder.spec.model_name} like pixels from 0 to 255; multiply them by 255, or give "
        "--scale, --mean and --std"
    )


def find_float_warning(split: str, low: float, high: float, encoder: Encoder) -> str | None:
    """Return a warning if float arrays are clearly not in the range that the encoder expects.

    Args:
        split: the split's name.
        low: the minimum of its first images.
        high: their maximum.
        encoder: the encoder.
    """
    if encoder.rescaling.expects_levels and high <= _MAX_UNIT_RANGE:
        return (
            f"{split}: float images are passed to the encoder unchanged ({low:.3g} to {high:.3g}), "
            f"but the encoder rescales its input ({encoder.rescaling.describe()}) and expects 0 to "
            "255; use uint8 arrays, or multiply them by 255"
        )
    return None
