# SPDX-License-Identifier: Apache-2.0
"""A run over image files of many formats: rows, rejects, pages, and what the run says."""

from pathlib import Path

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from support.containers import SIZE, encode, pixels_of
from support.pictures import make_folder
from support.sample_runs import save_encoder

import ray_embed as package

DEEP = np.random.default_rng(0).integers(0, 65536, (*SIZE, 3), np.uint16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keras.Sequential([keras.Input((*SIZE, 3)), keras.layers.Flatten()]).save(tmp_path / "m.keras")
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.png").write_bytes(encode(1))
    (root / "b.jpg").write_bytes(encode(2, "JPEG2000"))
    (root / "c.png").write_bytes(b"RIFF\1\0\0\0WEBPVP8 nothing")
    (root / "d.webp").write_bytes(b"no image")
    tifffile.imwrite(root / "e.tif", DEEP, photometric="rgb")
    tifffile.imwrite(root / "f.tif", pixels_of([3, 4]), photometric="rgb")
    tifffile.imwrite(root / "g.tif", np.zeros((*SIZE, 2), np.float32), planarconfig="contig")
    return tmp_path


def read_features(out: Path) -> dict[str, np.ndarray]:
    table = package.load(str(out)).to_table()
    features = np.array(table["feature"].to_pylist(), np.float32).reshape(-1, *SIZE, 3)
    return dict(zip(table["key"].to_pylist(), features, strict=True))


def read_rejects(out: Path) -> dict[str, str]:
    rows = pq.read_table(out / "rejects").to_pylist()
    return {row["key"]: row["reason"] for row in rows}


def test_files_of_all_formats_are_rows_or_rejects(ray_embed, folder):
    arguments = ["extract", "--model", "m.keras", "--source", "images", "--actors", "1"]
    arguments += ["--cpus-per-actor", "1", "--scale", "none", "--engine", "tensorflow"]
    first = ray_embed(*arguments, "--out", "first")
    assert first.code == 0, first.err
    assert "1 of 4 images have more than 8 bits per channel and were reduced to 8" in first.err
    assert "pages or frames passed over: 1; --pages all" in first.err
    features = read_features(folder / "first")
    expected = dict(zip(["a.png", "b.jpg", "f.tif"], pixels_of([1, 2, 3]), strict=True))
    for key, pixels in {**expected, "e.tif": DEEP >> 8}.items():
        np.testing.assert_array_equal(features[key], pixels)
    reasons = {"c.png": "corrupt image", "d.webp": "not an image"}
    reasons["g.tif"] = "wrong number of channels"
    assert read_rejects(folder / "first") == reasons

    deep = ray_embed(*arguments, "--out", "deep", "--depth", "16", "--pages", "all")
    assert deep.code == 0, deep.err
    assert "RGB files of 16 bits, 8×9 (stretch, bilinear), given as 0–65535" in deep.err
    features = read_features(folder / "deep")
    np.testing.assert_array_equal(features["e.tif"], DEEP)
    for key, seed in (("a.png", 1), ("f.tif#0", 3), ("f.tif#1", 4)):
        np.testing.assert_array_equal(features[key], pixels_of([seed])[0] * 257.0)
    assert read_rejects(folder / "deep") == reasons
    assert "reduced" not in deep.err

    parts = sorted((folder / "deep/features").iterdir())
    before = [part.read_bytes() for part in parts]
    parts[0].unlink()
    again = ray_embed(*arguments, "--out", "deep", "--depth", "16", "--pages", "all")
    assert again.code == 0, again.err
    assert [part.read_bytes() for part in parts] == before
    refused = ray_embed(*arguments, "--out", "deep", "--pages", "all")
    assert refused.code == 2
    assert "depth" in refused.err


def test_decoding_at_a_fraction_is_said_and_part_of_the_identity(ray_embed, tmp_path):
    save_encoder(tmp_path / "m.keras")
    make_folder(tmp_path / "photos", {"a": 2}, ".jpg")
    words = ("run", "--model", "m.keras", "--source", "photos", "--out", "r", "--actors", 1)
    result = ray_embed(*words, "--decode-scale", "auto")
    assert result.code == 0, result.err
    assert "JPEG files decoded at a fraction of their size" in result.err
    again = ray_embed(*words)
    assert again.code == 2
    assert "decode scale: was auto, is None" in again.err
