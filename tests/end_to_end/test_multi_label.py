# SPDX-License-Identifier: Apache-2.0
"""A run of records with lists of labels, from Hugging Face datasets to the projector."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from support.command import Command
from support.containers import make_dataset
from support.projector_page import parse_metadata
from support.sample_runs import read_results, save_encoder

import ray_embed as package

NAMES = [f"class {number:02}" for number in range(25)]
COUNT = 60


def make_lists() -> list[list[int]]:
    """Class numbers of each record: 0 is in every second list, the others are in turn."""
    return [[0] * (row % 2 == 0) + [1 + row % 24] * (row % 5 > 0) for row in range(COUNT)]


def name_lists() -> list[list[str] | None]:
    return [[NAMES[number] for number in numbers] or None for numbers in make_lists()]


@pytest.fixture
def run(ray_embed: Command, tmp_path: Path) -> Path:
    """A run of a folder that `save_to_disk` has written, and of single labels."""
    dataset = make_dataset(range(COUNT), tags=make_lists())
    kind = datasets.Sequence(datasets.ClassLabel(names=NAMES))
    dataset.cast_column("tags", kind).save_to_disk(tmp_path / "saved")
    make_dataset(range(3), tags=["class 00", "two", ""]).to_parquet(tmp_path / "single.parquet")
    save_encoder(tmp_path / "encoder.keras")
    finished = ray_embed(*list_arguments())
    assert finished.code == 0, finished.err
    assert "the labels of train are lists" in finished.err
    return tmp_path / "run"


def list_arguments() -> list[str | int]:
    return [
        "run", "--source", "train=saved", "--source", "test=single.parquet", "--label-column",
        "tags", "--model", "encoder.keras", "--out", "run", "--shard-size", 8, "--batch-size", 4,
        "--actors", 1, "--cpus-per-actor", 1, "--engine", "tensorflow", "--projector-limit", 20,
    ]  # fmt: skip


def test_lists_of_labels_go_all_the_way(run, ray_embed):
    wanted = [*name_lists(), ["class 00"], ["two"], [""]]
    table = package.load(str(run)).to_table()
    assert table["label"].to_pylist() == wanted
    features, labels = package.load(str(run)).to_numpy()
    assert labels.tolist() == wanted
    assert package.load(str(run)).to_pandas()["label"][0].tolist() == wanted[0]
    batches = list(package.load(str(run)).to_tf(batch_size=7))
    tensors = [label for _, ragged in batches for label in ragged.to_list()]
    assert [[text.decode() for text in label] or None for label in tensors] == wanted
    np.testing.assert_array_equal(np.concatenate([values for values, _ in batches]), features)
    rows = package.load(str(run)).to_ray().sort("index").take_all()
    assert [None if row["label"] is None else list(row["label"]) for row in rows] == wanted
    nearest = package.load(str(run)).neighbors("train/0.png", k=1)
    assert nearest["label"].to_pylist() in [[label] for label in wanted]

    check_metadata(run / "projector" / "metadata.tsv", wanted)
    names, points = parse_metadata((run / "projector" / "sample.tsv").read_bytes())
    assert len(points) == 20
    assert "label: class 00" in names

    # Parts that are written again are the same, as is the rest.
    before = read_results(run)
    for name in ("features/part-00000000.parquet", "features/part-00000004.parquet"):
        (run / name).unlink()
    (run / "features/part-00000002.parquet").write_bytes(b"damaged")
    again = ray_embed(*list_arguments())
    assert again.code == 0, again.err
    assert read_results(run) == before
    shown = ray_embed("status", run, "--verify")
    assert (shown.code, shown.err) == (0, "")

    shown = ray_embed("evaluate", run)
    assert shown.code == 0, shown.err
    assert "knn_lrap_5_cosine" in shown.out


def check_metadata(path: Path, wanted: list[list[str] | None]) -> None:
    names, points = parse_metadata(path.read_bytes())
    marked = [name.removeprefix("label: ") for name in names if name.startswith("label: ")]
    # Ties are sorted by name.
    assert marked[0] == NAMES[0]
    assert len(marked) == 20
    counts = {name: sum(name in (label or []) for label in wanted) for name in marked}
    assert marked == sorted(marked, key=lambda name: (-counts[name], name))
    for cells, label in zip(points, wanted, strict=True):
        assert cells[0] == ("(none)" if label is None else " | ".join(label) or "(empty)")
        marks = [int(cell) for name, cell in zip(names, cells, strict=True) if "label: " in name]
        assert marks == [int(name in (label or [])) for name in marked]


def test_a_changed_list_is_noticed(run, ray_embed, tmp_path):
    changed = make_lists()
    changed[3] = [7]
    kind = datasets.Sequence(datasets.ClassLabel(names=NAMES))
    dataset = make_dataset(range(COUNT), tags=changed).cast_column("tags", kind)
    dataset.save_to_disk(tmp_path / "saved")
    again = ray_embed(*list_arguments())
    assert again.code == 2
    assert "'3.png': label was ['class 04'] and is now ['class 07']" in again.err
