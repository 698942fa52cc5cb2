# SPDX-License-Identifier: Apache-2.0
"""What the metadata of an ONNX file says about its pixels.

ONNX defines the keys that begin with ``Image.``; exporters also write means and deviations.
"""

from dataclasses import dataclass, replace
from typing import Any

from ray_embed.encoders.rescaling import Rescaling

_RANGE, _FORMAT = "Image.NominalPixelRange", "Image.BitmapPixelFormat"
_LEVELS, _SIZE = "NominalRange_0_255", "imgsz"
_MEANS, _DEVIATIONS = ("mean", "image_mean", "img_mean"), ("std", "image_std", "img_std")


@dataclass(frozen=True)
class Described:
    """The metadata about pixels.

    Attributes:
        takes_levels: whether the encoder takes pixels from 0 to 255.
        notes: what follows from the metadata.
        advice: the options that the metadata suggests, or an empty string.
    """

    takes_levels: bool = False
    notes: tuple[str, ...] = ()
    advice: str = ""

    def apply(self, rescaling: Rescaling) -> Rescaling:
        """Return how the encoder rescales its pixels, with the range that the metadata names."""
        return replace(rescaling, expects_levels=True) if self.takes_levels else rescaling


def describe_size(model: Any) -> str:
    """Return a clause on the image size that the metadata of a model names, or an empty string."""
    sizes = [entry.value for entry in model.metadata_props if entry.key == _SIZE]
    return f"; its metadata says {_SIZE} {sizes[0]}" if sizes else ""


def read(model: Any) -> Described:
    """Return what the metadata of a model says about its pixels."""
    entries = {entry.key: entry.value.strip() for entry in model.metadata_props}
    levels = entries.get(_RANGE) == _LEVELS
    notes = (f"the model's metadata says {_RANGE} {_LEVELS}",) if levels else ()
    options = []
    if entries.get(_RANGE) == "Normalized_1_1":
        options.append("--scale symmetric")
    if entries.get(_FORMAT, "").startswith("Bgr"):
        options.append("--channel-order bgr")
    mean = next((entries[key] for key in _MEANS if key in entries), None)
    std = next((entries[key] for key in _DEVIATIONS if key in entries), None)
    if mean is not None and std is not None:
        options.append(f"--mean and --std for {mean} and {std}")
    if not options:
        return Described(levels, notes)
    return Described(
        levels, notes, f"the model's metadata suggests {', '.join(options)}: it is not applied"
    )
