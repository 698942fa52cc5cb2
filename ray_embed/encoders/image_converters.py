# SPDX-License-Identifier: Apache-2.0
"""Express the preprocessing of KerasHub, an ImageConverter, by the pixel options of a run."""

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from ray_embed.errors import InputError
from ray_embed.options import RESIZE_OPTIONS, VALUE_OPTIONS

# The largest mean of pixels from 0 to 1 that `--mean` accepts.
_MAX_UNIT_MEAN = 2.0
_CALLS = ("call", "__call__", "_call_python", "_call_tf")


def find_pixel_options(
    converter: Any, base: type, model: str, given: Collection[str] = ()
) -> dict[str, Any]:
    """Return the pixel options that do what a converter does, by the fields of `RunConfig`.

    Args:
        converter: an instance of `keras_hub.layers.ImageConverter`.
        base: that class.
        model: the value of ``--model``, for errors.
        given: the options that the user has given, which need not be found.

    Raises:
        InputError: the converter does something that no option can express.
    """
    where = f"--model {model}: its {type(converter).__name__}"
    options: dict[str, Any] = {}
    with _unless_given(VALUE_OPTIONS, given):
        options |= _find_value_options(converter, base, where)
    if converter.image_size is not None:
        with _unless_given(RESIZE_OPTIONS, given):
            options["resize"] = _find_resize(converter, where)
        options["interpolation"] = converter.interpolation
        options["antialias"] = bool(converter.antialias)
    return options


@contextlib.contextmanager
def _unless_given(names: Collection[str], given: Collection[str]) -> Iterator[None]:
    """Raise no error about options that the user has given."""
    try:
        yield
    except InputError:
        if not set(names) & set(given):
            raise


def _find_value_options(converter: Any, base: type, where: str) -> dict[str, Any]:
    fix = "prepare pixels as it does in a function of yours, and give --preprocess module:callable"
    changed = [call for call in _CALLS if _get(type(converter), call) is not _get(base, call)]
    if changed:
        raise InputError(
            f"{where} prepares images in its own way ({', '.join(changed)}), which no option can "
            f"express; {fix}"
        )
    scales, offsets = _as_numbers(converter.scale, 1.0), _as_numbers(converter.offset, 0.0)
    if not all(math.isfinite(number) for number in (*scales, *offsets)) or min(scales) <= 0:
        raise InputError(
            f"{where} multiplies pixels by {list(scales)} and adds {list(offsets)}; factors must "
            f"be positive; {fix}"
        )
    return _find_values(scales, offsets, is_scaled=converter.scale is not None)


def _find_resize(converter: Any, where: str) -> str | None:
    if getattr(converter, "pad_to_aspect_ratio", False):
        raise InputError(
            f"{where} pads images before it resizes them (pad_to_aspect_ratio), which no option "
            "can express; give --resize: `pad` resizes before it pads, so that pixels at the "
            "edge of the image differ"
        )
    # Images are stretched by default.
    return "crop" if converter.crop_to_aspect_ratio else None


def _get(cls: type, name: str) -> Any:
    return getattr(cls, name, None)


def _as_numbers(value: Any, default: float) -> tuple[float, ...]:
    if value is None:
        return (default,)
    return tuple(float(each) for each in value) if hasattr(value, "__len__") else (float(value),)


def _find_values(
    scales: Sequence[float], offsets: Sequence[float], *, is_scaled: bool
) -> dict[str, Any]:
    """Return the scale, mean and standard deviation that give pixel · scale + offset."""
    count = max(len(scales), len(offsets))
    scales, offsets = (
        tuple(values) * count if len(values) < count else tuple(values)
        for values in (scales, offsets)
    )
    pairs = list(zip(scales, offsets, strict=True))
    unit = is_scaled and all(abs(o / (255 * s)) <= _MAX_UNIT_MEAN for s, o in pairs)
    white = 255.0 if unit else 1.0
    means = _shorten([-offset / (scale * white) for scale, offset in pairs])
    deviations = _shorten([1 / (scale * white) for scale, _ in pairs])
    named = "unit" if unit else "none"
    if unit and means == deviations == (0.5,):
        named, means, deviations = "symmetric", (), ()
    return {
        "scale": named,
        "mean": () if set(means) == {0.0} else means,
        "std": () if set(deviations) == {1.0} else deviations,
    }


def _shorten(values: Sequence[float]) -> tuple[float, ...]:
    """Round values far beyond float32, and return one number if all are the same."""
    rounded = [float(f"{value:.9g}") + 0.0 for value in values]
    return (rounded[0],) if len(set(rounded)) == 1 else tuple(rounded)
