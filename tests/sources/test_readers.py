# SPDX-License-Identifier: Apache-2.0
"""Every form opens the images of planned records, and notices when these have changed."""

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs as pafs
from support.pictures import make_folder

from ray_embed import RunConfig
from ray_embed.errors import InputError, RunError
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources import files
from ray_embed.sources.array_images import open_arrays
from ray_embed.sources.base import PlannedRecords, Source, find_missing
from ray_embed.sources.dataset import Dataset
from ray_embed.sources.dataset_records import RecordReader
from ray_embed.sources.file_images import FileImages
from ray_embed.sources.files import File
from ray_embed.sources.open import open_sources
from ray_embed.sources.samples import draw_sample

PIXELS = PixelSpec(shape=(8, 8, 3), scale="none")
ARRAYS = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)


def make_source(form: str, folder: Path) -> Source:
    """A source of six records."""
    make_folder(folder / "images", {"a": 3, "b": 3})
    paths = sorted((folder / "images").rglob("*.png"))
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in paths]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows, ""]))
    np.savez(folder / "data.npz", images=ARRAYS, labels=np.arange(6))
    named = {"folder": "images", "listing": "list.csv", "npz": "data.npz"}[form]
    (source,) = open_sources(RunConfig(sources={"s": folder / named}, model="m.keras"))
    return source


def plan(source: Source) -> PlannedRecords:
    """All records of a listed source."""
    batches = source.records(Counter())
    assert batches is not None
    rows = pa.Table.from_batches(list(batches))
    return PlannedRecords(rows=rows, positions=np.arange(rows.num_rows))


@pytest.mark.parametrize("form", ["folder", "listing", "npz"])
@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4, 5], [1], [0, 2, 3, 5], []])
def test_the_images_of_chosen_records_are_opened(form, chosen, tmp_path):
    source = make_source(form, tmp_path)
    records = plan(source).select(np.array(chosen, np.int64))
    reader = pickle.loads(pickle.dumps(source.reader()))
    assert reader == source.reader()
    images = reader.open(records, PIXELS)
    assert len(images) == len(chosen)
    batches = list(images.batches(4, 1))
    assert [n for batch in batches for n in batch.positions.tolist()] == list(range(len(chosen)))
    stored = [images.load(number) for number in range(len(chosen))]
    if form == "npz":
        np.testing.assert_array_equal(np.array(stored).reshape(-1, 8, 8, 3), ARRAYS[chosen])
        assert images.size == len(chosen) * 8 * 8 * 3
    else:
        sizes = plan(source).rows["size"].to_pylist()
        assert images.size == sum(sizes[position] for position in chosen)
    assert images.find_value_range() is None


@pytest.mark.parametrize("form", ["folder", "listing", "npz"])
@pytest.mark.parametrize(("change", "said"), [("touch", "has changed"), ("unlink", "is gone")])
def test_images_that_changed_or_are_gone_are_refused(form, change, said, tmp_path):
    source = make_source(form, tmp_path)
    rows, reader = plan(source).rows, source.reader()
    reader.verify(rows)
    reader.verify(rows.slice(0, 0))
    name = "data.npz" if form == "npz" else "images/b/" + os.listdir(tmp_path / "images" / "b")[0]
    if change == "touch":
        os.utime(tmp_path / name, (1, 1))
    else:
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{said} since the run was planned"):
        reader.verify(rows)


def test_records_without_a_file_are_missing(tmp_path):
    source = make_source("listing", tmp_path)
    (tmp_path / "images" / "a" / os.listdir(tmp_path / "images" / "a")[0]).unlink()
    (missing,) = find_missing(plan(source).rows)
    assert missing in range(3)
    assert len(draw_sample(source, 6, None).records) == 5
    assert find_missing(pa.table({"key": ["a"], "label": [1], "crc": [2]})) == []


def test_a_file_that_cannot_be_decoded_is_left_out_and_diagnosed(tmp_path):
    source = make_source("folder", tmp_path)
    records = plan(source)
    (tmp_path / "images" / os.fsdecode(records.rows["path"][2].as_py())).write_bytes(b"no image")
    images = source.reader().open(records, PIXELS)
    (batch,) = images.batches(8, 1)
    assert batch.positions.tolist() == [0, 1, 3, 4, 5]
    assert images.diagnose(2) == "not an image"
    assert not isinstance(images.diagnose(3), str)


def test_objects_are_compared_with_the_plan_as_they_are_read(tmp_path):
    root = make_folder(tmp_path / "images", {"a": 2})
    # To the reader, any file system but none is an object store.
    objects = [File(str(p).encode(), pafs.LocalFileSystem()) for p in sorted(root.rglob("*.png"))]
    planned: list[Any] = [(size, None) for size, _ in files.stat_files(objects)]
    images = FileImages(objects, planned, PIXELS, [0, 0])
    (batch,) = images.batches(4, 1)
    assert batch.positions.tolist() == [0, 1]
    changed = FileImages(objects, [planned[0], (1, None)], PIXELS, [0, 0])
    with pytest.raises(InputError, match="has changed since the run was planned"):
        list(changed.batches(4, 1))


def test_images_of_a_dataset_come_with_their_shard():
    source = Dataset("s", [(image, 1) for image in ARRAYS], {})
    assert source.info is None
    assert source.records(Counter()) is None
    shard = RecordReader(source).read_shard(4)
    assert shard is not None
    records = PlannedRecords(rows=shard.rows, positions=np.arange(4), images=shard.images)
    reader = pickle.loads(pickle.dumps(source.reader()))
    for chosen in ([0, 1, 2, 3], [1, 3]):
        images = reader.open(records.select(np.array(chosen)), PIXELS)
        (batch,) = images.batches(4, 1)
        np.testing.assert_array_equal(batch.images, ARRAYS[chosen])
    reader.verify(shard.rows)
    with pytest.raises(RunError, match="image 0 of an in-memory shard"):
        images.diagnose(0)


def test_arrays_that_do_not_fit_the_encoder_are_named_by_their_position(tmp_path):
    np.savez(tmp_path / "s.npz", images=np.zeros((5, 8, 8, 1), np.uint8))
    (source,) = open_sources(RunConfig(sources={"s": tmp_path / "s.npz"}, model="m.keras"))
    with pytest.raises(InputError, match=r"--source s=.*s\.npz: image 3 has shape \(8, 8, 1\)"):
        source.reader().open(plan(source).select(np.array([3, 4])), PIXELS)
    fixed = PixelSpec(shape=(9, 9, 3), scale="none", resize=None)
    with pytest.raises(InputError, match=r"here: image 7 .* --image-size"):
        open_arrays(ARRAYS[:1], np.array([7]), fixed, "here")


def test_the_range_of_float_images_is_that_of_their_finite_values():
    floats = np.array([[0.5, np.nan], [-2.0, np.inf]], np.float32).reshape(1, 2, 2, 1)
    pixels = PixelSpec(shape=(2, 2, 1), scale="none", resize=None)
    assert open_arrays(floats, np.array([0]), pixels, "here").find_value_range() == (-2.0, 0.5)


def test_a_sample_is_spread_over_the_first_records(tmp_path):
    source = make_source("npz", tmp_path)
    assert draw_sample(source, 3, None).records.rows["key"].to_pylist() == ["0", "2", "5"]
    assert draw_sample(source, 3, 2).records.rows["key"].to_pylist() == ["0", "1"]
    dataset = Dataset("s", [(image, 1) for image in ARRAYS], {})
    sample = draw_sample(dataset, 4, 2)
    assert len(sample.records) == 2
    assert sample.info.image_shape == (8, 8, 3)
