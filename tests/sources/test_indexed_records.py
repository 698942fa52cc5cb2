# SPDX-License-Identifier: Apache-2.0
"""Datasets whose records the actors read by their positions."""

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras.utils import PyDataset
from ray import cloudpickle
from support.command import Command
from support.containers import make_dataset, pixels_of
from support.opened import walked

import ray_embed as package
from ray_embed import planning
from ray_embed.errors import InputError, RunError
from ray_embed.extraction.plan_rows import check_indexed
from ray_embed.planning import Plan, SplitPlan
from ray_embed.sources.dataset import Dataset, PickledObject
from ray_embed.sources.dataset_records import RecordReader
from ray_embed.sources.indexed_records import (
    IndexedReader,
    IndexedRecords,
    choose_probes,
    open_records,
)
from ray_embed.storage.filesystem import Folder

IMAGES = pixels_of(range(11))


class Items:
    """Records one at a time, as the datasets of PyTorch have them."""

    def __init__(self, count: int = 11) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Any:
        return IMAGES[position], position % 3, f"p{position}"


class Batches(PyDataset):
    """Batches of the given sizes."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.stops = np.cumsum(sizes)

    def __len__(self) -> int:
        return len(self.stops)

    def __getitem__(self, position: int) -> Any:
        start = self.stops[position - 1] if position else 0
        rows = range(start, self.stops[position])
        return IMAGES[rows], np.array([row % 3 for row in rows]), [f"p{row}" for row in rows]


def open_indexed(source: Any, limit: int | None = None) -> IndexedRecords:
    records = open_records(Dataset("valid", source, {}), limit)
    assert isinstance(records, IndexedRecords)
    return records


@pytest.mark.parametrize(
    "source", [Items(), Items, Batches(4, 4, 3), Batches(11), Batches(5, 5, 1)]
)
@pytest.mark.parametrize("limit", [None, 9, 100])
def test_shards_read_in_any_order_are_those_of_a_walk(source, limit):
    rows, images, _ = walked(source, limit=limit)
    records = open_indexed(source, limit)
    count = len(images)
    assert records.count == count
    for start in (8, 0, 4):
        stop = min(start + 4, count)
        shard = records.read(start, stop)
        assert shard.rows.equals(rows.slice(start, stop - start).combine_chunks())
        np.testing.assert_array_equal(shard.images, images[start:stop])
    info = records.describe()
    assert info.probes.to_pylist() == [rows.to_pylist()[at] for at in choose_probes(count)]


@pytest.mark.parametrize("sizes", [(4, 3, 4), (4, 5), (1, 2)])
def test_batches_of_other_sizes_are_refused_with_the_fix(sizes):
    with pytest.raises(InputError, match=r"batch 1 has .* generator function"):
        open_indexed(Batches(*sizes)).read(0, sum(sizes))


def test_an_error_of_an_item_names_it():
    class Failing(Items):
        def __getitem__(self, position: int) -> Any:
            if position == 5:
                raise OSError("the disk is gone")
            return super().__getitem__(position)

    records = open_indexed(Failing())
    with pytest.raises(RunError, match=r"element 5 .*the disk is gone"):
        records.read(4, 8)
    assert records.read(0, 4).rows.num_rows == 4


@pytest.mark.parametrize("source", [[(image, 1) for image in IMAGES], IMAGES, lambda: iter(IMAGES)])
def test_images_in_memory_and_iterables_are_read_in_order(source):
    assert isinstance(open_records(Dataset("valid", source, {}), None), RecordReader)


def test_length_that_is_unknown_is_refused():
    class Endless(Items):
        def __len__(self) -> Any:
            return None

    with pytest.raises(InputError, match="length is unknown"):
        open_indexed(Endless())
    with pytest.raises(InputError, match="empty"):
        open_indexed(Items(0))


# In the actors


def make_reader(source: Any, limit: int | None = None) -> IndexedReader:
    """The reader as an actor gets it."""
    dataset = Dataset("valid", source, {})
    info = open_indexed(source, limit).describe()
    if not isinstance(source, str):
        dataset = Dataset("valid", PickledObject(cloudpickle.dumps(source)), {}, name="Items")
    reader = IndexedReader(
        dataset.where, source=dataset, limit=limit, records=info.records, probes=info.probes
    )
    return pickle.loads(pickle.dumps(reader))


@pytest.mark.parametrize(
    "source", [Items(), Batches(4, 4, 3), lambda: Items(), make_dataset(range(11), label=[1] * 11)]
)
def test_an_actor_opens_the_dataset_itself(source):
    reader = make_reader(source, limit=9)
    shard = reader.read(4, 4)
    assert shard.rows.equals(open_indexed(source).read(4, 8).rows)
    pickle.dumps(reader.source)


@pytest.mark.parametrize("change", ["order", "length", "type"])
def test_a_dataset_that_differs_in_an_actor_is_refused(change, tmp_path, monkeypatch):
    (tmp_path / f"mine_{change}.py").write_text(
        "import numpy as np\n"
        "opened = []\n"
        "def make():\n"
        "    opened.append(1)\n"
        "    return make.open(len(opened))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__(f"mine_{change}")
    later = {"order": Items(), "length": Items(5), "type": [(IMAGES[0], 1)]}[change]
    if change == "order":
        monkeypatch.setattr(Items, "__getitem__", lambda self, at: (IMAGES[at - self.shift], 0))
        monkeypatch.setattr(Items, "shift", 0, raising=False)
        later.shift = 1
    module.make.open = lambda count: Items() if count == 1 else later
    info = open_indexed(f"mine_{change}:make").describe()
    dataset = Dataset("valid", f"mine_{change}:make", {})
    reader = IndexedReader(
        dataset.where, source=dataset, limit=None, records=info.records, probes=info.probes
    )
    with pytest.raises(InputError, match=r"other records in an actor .*fixed seed"):
        reader.read(0, 4)


# Resuming


def test_a_changed_dataset_is_noticed_before_anything_is_extracted(tmp_path):
    folder = Folder.open(str(tmp_path / "r"))
    split = SplitPlan(
        ordinal=0, name="valid", root="Items", label_type="int64", extras=(), shard_size=4,
        shards_per_file=1, records=11,
    )  # fmt: skip
    plan = Plan((split,), "int64", ())
    reader = make_reader(Items())
    check_indexed(folder, plan, plan, (reader,))
    for local, start in enumerate((0, 4, 8)):
        rows = reader.read(start, min(4, 11 - start)).rows
        assert planning.write_shard(folder, split, local, rows) is None
    check_indexed(folder, plan, None, (reader,))
    assert choose_probes(1) == [0]
    assert choose_probes(100) == [0, 14, 28, 42, 56, 70, 84, 99]

    for changed, token in ((Items(8), "now has 8 records, and had 11"), (Moved(), "record 0")):
        with pytest.raises(InputError, match=token) as raised:
            check_indexed(folder, plan, plan, (make_reader(changed),))
        assert "--overwrite" in str(raised.value)
    with pytest.raises(InputError, match="now ends before record 8"):
        check_indexed(folder, plan, None, (make_reader(Items(8)),))


class Moved(Items):
    def __getitem__(self, position: int) -> Any:
        return super().__getitem__((position + 1) % 11)


MODULE = """
import os

import numpy as np


class Items:
    def __init__(self, count, log):
        self.count, self.log = count, log

    def __len__(self):
        return self.count

    def __getitem__(self, at):
        with open(self.log, "a") as file:
            print(os.getpid(), at, file=file)
        return np.full((4, 3, 3), at, np.uint8), at % 3
"""


def test_the_actors_of_a_run_read_the_dataset(ray_embed: Command, tmp_path):
    import keras

    keras.Sequential([keras.Input((4, 3, 3)), keras.layers.Rescaling(1.0)]).save(
        tmp_path / "m.keras"
    )
    (tmp_path / "my_items.py").write_text(MODULE)

    arguments = {"count": 40, "log": str(tmp_path / "log")}

    def run() -> Any:
        return ray_embed(
            "extract", "--source", "valid=my_items:Items", "--model", "m.keras",
            "--pool", "flatten", "--source-kwargs", json.dumps({"valid": arguments}),
            "--engine", "tensorflow", "--shard-size", 16, "--batch-size", 4, "--out", "r",
            "--actors", 2, "--cpus-per-actor", 1,
        )  # fmt: skip

    result = run()
    assert result.code == 0, result.err
    read = [tuple(map(int, line.split())) for line in (tmp_path / "log").read_text().splitlines()]
    reads = Counter(at for _, at in read)
    # The process that plans the run and the actors all read the probes.
    probes = set(choose_probes(40))
    assert {at for at, count in reads.items() if count == 1} == set(range(40)) - probes
    planner = read[0][0]
    assert {at for process, at in read if process == planner} == probes
    table = package.load("r").to_table()
    assert table["label"].to_pylist() == [at % 3 for at in range(40)]
    assert table["key"].to_pylist() == [str(at) for at in range(40)]
    values = package.load("r").to_numpy()[0]
    np.testing.assert_allclose(values[:, 0] * 255, range(40), atol=1e-4)

    def files() -> dict[str, bytes]:
        found = [*Path("r/features").glob("*"), *Path("r/plan").rglob("*")]
        return {str(file): file.read_bytes() for file in found if file.is_file()}

    before = files()
    Path("r/features/part-00000001.parquet").unlink()
    # Its plan rows are gone, so the shard is extracted again.
    Path("r/plan/00-valid/part-00000002.parquet").write_bytes(b"damaged")
    result = run()
    assert result.code == 0, result.err
    assert "shard 2 is extracted again" in result.err
    assert files() == before
