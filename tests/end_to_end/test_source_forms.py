# SPDX-License-Identifier: Apache-2.0
"""The same images from files of several forms: planned, read by actors, and resumed."""

from pathlib import Path

import h5py
import keras
import numpy as np
import pyarrow.compute as pc
from support.containers import SIZE, make_dataset, pixels_of

import ray_embed as package
from ray_embed import Run, RunConfig

COUNT = 20
LABELS = [position % 3 for position in range(COUNT)]


def write_forms(folder: Path) -> dict[str, Path]:
    """Write the images in every form; return the sources by split."""
    pixels = pixels_of(range(COUNT))
    make_dataset(range(COUNT), label=LABELS).save_to_disk(folder / "saved", num_shards=2)
    np.save(folder / "images.npy", pixels)
    np.save(folder / "labels.npy", LABELS)
    with h5py.File(folder / "d.h5", "w") as file:
        file["images"], file["labels"] = pixels, LABELS
    return {"saved": folder / "saved", "npy": folder / "images.npy", "h5": folder / "d.h5"}


def extract(folder: Path, sources: dict[str, Path], out: str, limit: int | None = None) -> Run:
    return package.extract(
        RunConfig(
            sources=sources,
            model=str(folder / "m.keras"),
            out=str(folder / out),
            limit=limit,
            pool="flatten",
            scale="none",
            engine="tensorflow",
            shard_size=8,
            batch_size=4,
            actors=1,
            cpus_per_actor=1,
        )
    )


def test_every_form_gives_the_same_images_and_labels(ray_session, tmp_path):
    sources = write_forms(tmp_path)
    encoder = [keras.Input((*SIZE, 3)), keras.layers.Rescaling(1.0)]
    keras.Sequential(encoder).save(tmp_path / "m.keras")
    table = extract(tmp_path, sources, "run").to_table()
    for split in sources:
        rows = table.filter(pc.equal(table["split"], split))
        features = np.array(rows["feature"].to_pylist()).reshape(COUNT, *SIZE, 3)
        np.testing.assert_array_equal(features, pixels_of(range(COUNT)))
        assert rows["label"].to_pylist() == LABELS

    for part in sorted((tmp_path / "run/features").iterdir())[1::2]:
        part.unlink()
    assert extract(tmp_path, sources, "run").to_table().equals(table)
    some = extract(tmp_path, sources, "some", limit=5).to_table()
    assert some["label"].to_pylist() == LABELS[:5] * 3
