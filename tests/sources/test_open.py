# SPDX-License-Identifier: Apache-2.0
"""A new form of source needs one module and one line, as docs/contributing.md describes."""

import importlib
import textwrap
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support.features import assert_features_equal

import ray_embed as package
from ray_embed import RunConfig, planning
from ray_embed.errors import InputError
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.sources import open as forms
from ray_embed.sources.base import PlannedRecords
from ray_embed.sources.samples import draw_sample
from ray_embed.storage.filesystem import Folder

H, W = 4, 3

# Actors import it from the working folder.
TOY = '''
    """The images of a .toy file, (N, H, W, C) uint8; the label is whether a position is odd."""

    from dataclasses import dataclass
    from typing import ClassVar

    import numpy as np
    import pyarrow as pa

    from ray_embed.errors import InputError
    from ray_embed.sources.array_images import open_arrays
    from ray_embed.sources.base import SourceInfo
    from ray_embed.sources.files import check_unchanged, locate_file, stat_files


    @dataclass(frozen=True)
    class Toy:
        kind: ClassVar[str] = "array"
        split: str
        location: str
        info: SourceInfo

        def records(self, skipped):
            [(size, mtime)] = stat_files([locate_file(self.location)])
            count = len(np.load(self.location, mmap_mode="r"))
            yield pa.record_batch(
                {
                    "key": pa.array([f"image {i}" for i in range(count)]),
                    "label": pa.array([i % 2 == 1 for i in range(count)]),
                    "path": pa.nulls(count, pa.binary()),
                    "size": pa.array([size] * count, pa.int64()),
                    "mtime": pa.array([mtime] * count, pa.int64()),
                }
            )

        def reader(self):
            return ToyReader(self.location)


    @dataclass(frozen=True)
    class ToyReader:
        location: str

        def open(self, records, pixels):
            images = np.load(self.location, mmap_mode="r")[records.positions]
            return open_arrays(images, records.positions, pixels, f"--source {self.location}")

        def verify(self, rows):
            if rows.num_rows:
                planned = (rows["size"][0].as_py(), rows["mtime"][0].as_py())
                check_unchanged([locate_file(self.location)], [planned])


    def open_toy(split, path, config):
        images = np.load(path, mmap_mode="r")
        if images.dtype != np.uint8:
            raise InputError(f"--source {path}: its images are {images.dtype}; save uint8")
        return Toy(split, path, SourceInfo(label_type=pa.bool_(), image_shape=images.shape[1:]))
'''


def save(path: Path, images: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, images)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Register the form; return the images of data.toy in the working folder."""
    (tmp_path / "toy_source.py").write_text(textwrap.dedent(TOY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.reload(importlib.import_module("toy_source"))
    monkeypatch.setitem(forms.FORMS, ".toy", module.open_toy)
    content = np.random.default_rng(0).integers(0, 256, (10, H, W, 3)).astype(np.uint8)
    save(tmp_path / "data.toy", content)
    return content


def config_of(path: Path, **options: Any) -> RunConfig:
    return RunConfig(sources={"toy": str(path)}, **{"model": "m.keras"} | options)


def test_a_new_form_is_planned_opened_and_verified(images, tmp_path):
    (source,) = forms.open_sources(config_of(tmp_path / "data.toy"))
    folder = Folder.open(str(tmp_path / "plan"))
    plan = planning.make_plan([source], {}, folder, shard_size=4, batch_size=2, limit=None)
    (split,) = plan.splits
    assert (split.records, split.shards, split.image_shape) == (10, 3, (H, W, 3))
    assert plan.label_type == "bool"

    rows = planning.read_shard(folder, split, 1)
    records = PlannedRecords(rows=rows, positions=np.arange(4, 8)).select(np.array([0, 3]))
    pixels = PixelSpec(shape=(H, W, 3), scale="none")
    opened = source.reader().open(records, pixels)
    (batch,) = opened.batches(2, 1)
    np.testing.assert_array_equal(batch.images, images[[4, 7]])
    np.testing.assert_array_equal(opened.load(1), images[7])
    assert opened.size == 2 * H * W * 3

    source.reader().verify(rows)
    save(tmp_path / "data.toy", images[:5])
    with pytest.raises(InputError, match="has changed since the run was planned"):
        source.reader().verify(rows)


def test_a_new_form_is_sampled_for_the_preview(images, tmp_path):
    (source,) = forms.open_sources(config_of(tmp_path / "data.toy"))
    sample = draw_sample(source, 3, None)
    assert sample.records.rows["key"].to_pylist() == ["image 0", "image 4", "image 9"]
    assert sample.info == source.info


def test_a_new_form_is_named_where_none_fits(images, tmp_path):
    (tmp_path / "data.txt").touch()
    with pytest.raises(InputError, match=r"\.npz or \.toy file, or module:callable"):
        forms.open_sources(config_of(tmp_path / "data.txt"))
    save(tmp_path / "data.toy", images.astype(np.float64))
    with pytest.raises(InputError, match="float64"):
        forms.open_sources(config_of(tmp_path / "data.toy"))


def test_a_new_form_runs_from_end_to_end(ray_session, images, tmp_path):
    keras.Sequential([keras.Input((H, W, 3)), keras.layers.Rescaling(1.0)]).save("m.keras")
    run = package.extract(
        config_of(
            tmp_path / "data.toy",
            pool="flatten",
            engine="tensorflow",
            out=str(tmp_path / "run"),
            shard_size=4,
            batch_size=3,
            actors=1,
            cpus_per_actor=1,
        )
    )
    table = run.to_table()
    assert (run.rows, run.rejects) == (10, 0)
    assert table["key"].to_pylist() == [f"image {i}" for i in range(10)]
    assert table["label"].to_pylist() == [i % 2 == 1 for i in range(10)]
    expected = images.reshape(10, -1) / np.float32(255)
    assert_features_equal(run.to_numpy()[0], expected)


def test_arguments_for_a_source_that_is_no_callable_are_refused(tmp_path):
    np.savez(tmp_path / "s.npz", images=np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(InputError, match=r"--source-kwargs for 'toy': .*s\.npz is not a callable"):
        forms.open_sources(config_of(tmp_path / "s.npz", source_kwargs={"toy": {"count": 1}}))


@pytest.mark.parametrize(
    ("name", "option"),
    [("list.csv", "image_column"), ("list.csv", "key_column"), ("data.npz", "key_column")],
)
def test_column_that_no_source_uses_is_refused(name, option, tmp_path):
    np.savez(tmp_path / "data.npz", images=np.zeros((2, 3, 3), np.uint8))
    (tmp_path / "a.png").touch()
    (tmp_path / "list.csv").write_text("path,label,id\na.png,x,7\n")
    flag = f"--{option.replace('_', '-')} id"
    with pytest.raises(InputError, match=f"{flag}: no --source uses it.*leave it out"):
        forms.open_sources(config_of(tmp_path / name, **{option: "id"}))
