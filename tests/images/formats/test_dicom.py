# SPDX-License-Identifier: Apache-2.0
"""DICOM files: windows, lookup tables, inverted gray, and color."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)
from support.pictures import picture
from support.prepared import decode_one, pixels_of, reason_of

SIZE = (40, 56)
GRAY = np.asarray(picture(2, SIZE).convert("L"))
STORED = GRAY.astype(np.uint16) * 16


def write(path: Path, pixels: np.ndarray, bits: int = 12, **elements: Any) -> Path:
    """Write an uncompressed DICOM file."""
    dataset = make_dataset(pixels, bits, **elements)
    dataset.save_as(path, enforce_file_format=True)
    return path


def make_dataset(pixels: np.ndarray, bits: int, **elements: Any) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PhotometricInterpretation = elements.pop("kind", "MONOCHROME2")
    dataset.set_pixel_data(pixels, dataset.PhotometricInterpretation, bits)
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def test_without_a_window_all_stored_levels_are_shown(tmp_path):
    batch = decode_one(write(tmp_path / "a.png", STORED), (*SIZE, 1))
    expected = STORED * (65535 / 4095)
    assert np.abs(batch.images[0][..., 0] - expected // 256).max() <= 1
    assert batch.reduced.tolist() == [True]
    deep = pixels_of(tmp_path / "a.png", (*SIZE, 1), depth=16)
    assert np.abs(deep[..., 0] - expected).max() <= 0.51


def test_the_window_of_the_header_is_applied_after_the_rescaling(tmp_path):
    path = write(
        tmp_path / "a.dcm", STORED, RescaleSlope=2, RescaleIntercept=-1024,
        WindowCenter=[1000, 40], WindowWidth=[800, 80],
    )  # fmt: skip
    values = STORED * 2.0 - 1024
    # PS3.3 C.11.2.1.2, with the first of the windows.
    expected = np.clip((values - 999.5) / 799 + 0.5, 0, 1) * 255
    found = pixels_of(path, (*SIZE, 3))
    assert np.abs(found - expected[..., None]).max() <= 1
    assert len(np.unique(found)) > 10


def test_signed_and_inverted_gray_are_shown_as_in_a_viewer(tmp_path):
    signed = (STORED.astype(np.int32) - 2048).astype(np.int16)
    expected = pixels_of(write(tmp_path / "a.dcm", STORED), (*SIZE, 1))
    np.testing.assert_array_equal(
        pixels_of(write(tmp_path / "b.dcm", signed), (*SIZE, 1)), expected
    )
    inverted = write(tmp_path / "c.dcm", STORED, kind="MONOCHROME1")
    np.testing.assert_array_equal(pixels_of(inverted, (*SIZE, 1)), 255 - expected)


def test_color_is_given_as_rgb(tmp_path):
    rgb = np.asarray(picture(1, SIZE))
    path = write(tmp_path / "a.dcm", rgb, 8, kind="RGB")
    np.testing.assert_array_equal(pixels_of(path, rgb.shape), rgb)


def test_the_first_frame_is_taken_and_the_others_are_counted(tmp_path):
    path = write(tmp_path / "a.dcm", np.stack([GRAY, GRAY[::-1]]), 8)
    batch = decode_one(path, (*SIZE, 1))
    np.testing.assert_array_equal(batch.images[0][..., 0], GRAY)
    assert batch.passed_over.tolist() == [1]


def test_compressed_pixels_are_decoded_where_there_is_a_decoder(tmp_path):
    dataset = make_dataset(STORED, 12)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = pixels_of(write(tmp_path / "b.dcm", STORED), (*SIZE, 1))
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.dcm", (*SIZE, 1)), expected)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.save_as(tmp_path / "c.dcm", enforce_file_format=True)
    assert reason_of(tmp_path / "c.dcm") == "unsupported image"


def test_large_compressed_and_damaged_files_are_rejected(tmp_path):
    path = write(tmp_path / "a.dcm", STORED)
    assert reason_of(path, max_pixels=1000) == "too many pixels"
    assert reason_of(path.read_bytes()[:-100]) == "corrupt image"
    dataset = make_dataset(STORED, 12)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert reason_of(tmp_path / "b.dcm") == "unsupported image"
    report = make_dataset(STORED, 12)
    del report.PixelData
    report.save_as(tmp_path / "c.dcm", enforce_file_format=True)
    assert reason_of(tmp_path / "c.dcm") == "unsupported image"
