# SPDX-License-Identifier: Apache-2.0
"""DICOM, decoded by pydicom: gray images with the window of their header, and color images."""

import io
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.images.formats.base import Format, OpenedImage, RejectedImage, count_pixels

if TYPE_CHECKING:
    from pydicom import Dataset

_SIGNATURE_AT, _SIGNATURE = 128, b"DICM"
# The whole file is compressed: its size in memory would be known only after decompression.
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_BYTES = 2048
_MAX_LEVEL = 65535


def _is_dicom(head: bytes) -> bool:
    return head[_SIGNATURE_AT : _SIGNATURE_AT + 4] == _SIGNATURE


def _open(content: bytes, page: int) -> OpenedImage:
    import pydicom

    if _DEFLATED in content[:_META_BYTES]:
        raise RejectedImage("unsupported image")
    dataset = pydicom.dcmread(io.BytesIO(content))
    if not _can_decode(dataset):
        raise RejectedImage("unsupported image")
    pixel_bytes = dataset.SamplesPerPixel * dataset.BitsAllocated / 8
    return OpenedImage(
        pixels=count_pixels(dataset.Rows, dataset.Columns, pixel_bytes),
        decode=partial(_decode, dataset),
        pages=int(dataset.get("NumberOfFrames") or 1),
    )


def _can_decode(dataset: "Dataset") -> bool:
    """Return whether there are pixels, and a decoder for their compression."""
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    except NotImplementedError:
        return False
    return "PixelData" in dataset and decoder.is_available


def _decode(dataset: "Dataset") -> Array:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    stored = pixel_array(dataset, index=0)
    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        colors = apply_color_lut(stored, dataset)
        return colors if colors.dtype == np.uint8 else (colors >> 8).astype(np.uint8)
    if not kind.startswith("MONOCHROME"):
        if stored.dtype != np.uint8:
            raise RejectedImage("unsupported image")
        return stored
    levels = _apply_window(stored, dataset)[..., None]
    return ~levels if kind == "MONOCHROME1" else levels


def _apply_window(stored: Array, dataset: "Dataset") -> Array:
    """Return the gray levels (h, w) uint16 that a viewer shows: the window, or the lookup table, of
    the header. Without one, all levels that the file can store are shown."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    shown = apply_voi_lut(apply_modality_lut(stored, dataset), dataset)
    low, high = _find_range(dataset)
    spread = (shown.astype(np.float64) - low) / (high - low)
    return np.round(np.clip(spread, 0, 1) * _MAX_LEVEL).astype(np.uint16)


def _find_range(dataset: "Dataset") -> tuple[float, float]:
    """Return the lowest and the highest value that pydicom's `apply_voi_lut` can return."""
    for name in ("VOILUTSequence", "ModalityLUTSequence"):
        if dataset.get(name):
            return 0.0, 2.0 ** dataset[name][0].LUTDescriptor[2] - 1
    bits = dataset.BitsStored
    low = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
    ends = np.array([low, low + 2**bits - 1], np.float64)
    if dataset.get("RescaleSlope") is not None and dataset.get("RescaleIntercept") is not None:
        ends = ends * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return float(ends.min()), float(ends.max())


FORMAT = Format(_is_dicom, _open)
