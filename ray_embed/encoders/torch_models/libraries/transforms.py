# SPDX-License-Identifier: Apache-2.0
"""Express the transforms of torchvision and Pillow by the pixel options of a run."""

from collections.abc import Collection, Sequence
from typing import Any

from ray_embed.errors import InputError
from ray_embed.options import RESIZE_OPTIONS, VALUE_OPTIONS

# Nearest neighbors are missing, because Pillow and TensorFlow choose different ones.
_INTERPOLATIONS = {"bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos3"}


def find_value_options(mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return the options for pixels from 0 to 1 that are normalized."""
    means, deviations = _shorten(mean), _shorten(std)
    return {
        "scale": "unit",
        "mean": () if set(means) == {0.0} else means,
        "std": () if set(deviations) == {1.0} else deviations,
    }


def find_interpolation_options(method: str, where: str, given: Collection[str]) -> dict[str, Any]:
    """Return the options for an interpolation of Pillow, which antialiases when it shrinks images.

    Args:
        method: its name in torchvision.
        where: what error messages begin with.
        given: the pixel options that the user has given, which replace those of the library.

    Raises:
        InputError: no option does the same.
    """
    if method not in _INTERPOLATIONS:
        if "interpolation" in given:
            return {}
        raise InputError(
            f"{where} resizes images with {method!r} interpolation, which no option can express; "
            f"give one of --interpolation {', '.join(_INTERPOLATIONS.values())}"
        )
    return {"interpolation": _INTERPOLATIONS[method], "antialias": True}


def refuse_resizing(where: str, what: str, given: Collection[str]) -> None:
    """Refuse a way of resizing that no option can express, unless the user has given another.

    Args:
        where: what the error message begins with.
        what: what the library does to images.
        given: the pixel options that the user has given.

    Raises:
        InputError: the user has given none.
    """
    if not set(RESIZE_OPTIONS) & set(given):
        raise InputError(
            f"{where} {what}, which no option can express; choose another way with --resize or "
            "--crop-fraction"
        )


def refuse_values(where: str, what: str, given: Collection[str]) -> None:
    """Refuse a way of preparing values that no option can express, as :func:`refuse_resizing`.

    Raises:
        InputError: the user has given no other.
    """
    if not set(VALUE_OPTIONS) & set(given):
        raise InputError(
            f"{where} {what}, which no option can express; choose another way with --scale, --mean "
            "and --std, or prepare pixels in a function of yours: --preprocess module:callable"
        )


def _shorten(values: Sequence[float]) -> tuple[float, ...]:
    """Return one number if all are the same."""
    numbers = tuple(float(value) for value in values)
    return numbers[:1] if len(set(numbers)) == 1 else numbers
