# SPDX-License-Identifier: Apache-2.0
"""The plan cuts records into shards by fixed rules; one schema of labels holds for all splits."""

import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.containers import make_dataset
from support.pictures import make_folder

from ray_embed import RunConfig, planning
from ray_embed.core.keys import make_key
from ray_embed.errors import InputError
from ray_embed.planning import Plan, Shard
from ray_embed.sources import label_schema
from ray_embed.sources.open import open_sources
from ray_embed.sources.samples import draw_sample
from ray_embed.storage.filesystem import Folder

Planner = Callable[..., tuple[Plan, Folder]]


@pytest.fixture
def planned(tmp_path: Path) -> Planner:
    """Plan listed sources, each call into a folder of its own."""
    numbers = itertools.count()

    def call(
        sources: dict[str, Any],
        shard_size: int | None = 3,
        batch_size: int = 32,
        limit: int | None = None,
        **options: Any,
    ) -> tuple[Plan, Folder]:
        config = RunConfig(sources=sources, model="m.keras", **options)
        target = Folder.open(str(tmp_path / f"planned-{next(numbers)}"))
        outline = planning.make_plan(
            open_sources(config),
            {},
            target,
            shard_size=shard_size,
            batch_size=batch_size,
            limit=limit,
        )
        return outline, target

    return call


def listing(path: Path, *rows: str, header: str = "path,label") -> Path:
    """Write a listing, and an empty file for each of its paths."""
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    at = header.split(",").index("path")
    for row in rows:
        (path.parent / row.split(",")[at]).touch()
    return path


def npz(path: Path, label: Any, size: int = 2) -> Path:
    np.savez(path, images=np.zeros((len(label), size, size, 3), np.uint8), labels=label)
    return path


def columns(outline: Plan, folder: Folder) -> pa.Table:
    """All planned records with the columns that the parts have, in order."""
    tables = []
    number = index = 0
    for split in outline.splits:
        assert split.records is not None
        assert split.shards is not None
        for local in range(split.shards):
            position = local * split.shard_size
            rows = planning.read_shard(folder, split, local)
            shard = Shard(
                number=number + local,
                split=split,
                local=local,
                index=index + position,
                records=split.shard_size,
            )
            tables.append(planning.make_record_columns(outline, shard, rows))
        number, index = number + split.shards, index + split.records
    return pa.concat_tables(tables)


# Labels: one type for all splits


def test_records_that_share_a_key_are_counted(planned, tmp_path):
    unique = listing(tmp_path / "unique.csv", "a.png,1", "b.png,1")
    repeated = listing(tmp_path / "repeated.csv", *["a.png,1", "b.png,1", "c.png,1"] * 2, "a.png,2")
    outline, _ = planned({"u": unique, "r": repeated})
    (note,) = [note for note in outline.notes if "key" in note]
    assert note.startswith("r: 4 of 7 records have the key of an earlier record")
    assert "--key-column" in note


def test_source_without_records_is_refused(planned, tmp_path):
    make_dataset([0], label=[1]).select([]).to_parquet(tmp_path / "none.parquet")
    sources = {"full": npz(tmp_path / "a.npz", [1]), "none": tmp_path / "none.parquet"}
    with pytest.raises(InputError, match=r"--source none.*no records; remove it"):
        planned(sources)
    config = RunConfig(sources=sources, model="m.keras")
    with pytest.raises(InputError, match=r"--source none.*no records; remove it"):
        draw_sample(open_sources(config)[1], 3, None)


TEXT, INT, FLOAT, BOOL, NONE = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.null()


@pytest.mark.parametrize(
    ("types", "common"),
    [
        ([TEXT], TEXT),
        ([INT], INT),
        ([FLOAT], FLOAT),
        ([BOOL], BOOL),
        ([NONE], TEXT),
        ([NONE, NONE], TEXT),
        ([], TEXT),
        ([INT, INT], INT),
        ([INT, FLOAT], FLOAT),
        ([FLOAT, INT, FLOAT], FLOAT),
        ([INT, NONE], INT),
        ([NONE, BOOL], BOOL),
        ([INT, TEXT], TEXT),
        ([FLOAT, TEXT], TEXT),
        ([INT, BOOL], TEXT),
        ([BOOL, TEXT], TEXT),
        ([INT, FLOAT, BOOL], TEXT),
        ([INT, FLOAT, NONE], FLOAT),
    ],
)
def test_the_common_type_of_labels(types, common):
    assert label_schema.find_common_type(types) == common
    assert label_schema.find_common_type(reversed(types)) == common


def test_numbers_become_text_as_python_writes_them():
    found = label_schema.cast_labels(pa.array([1, -2, None]), TEXT)
    assert found.to_pylist() == ["1", "-2", None]
    assert label_schema.cast_labels(pa.array([1.5, 2.0, None]), TEXT).to_pylist() == [
        "1.5",
        "2.0",
        None,
    ]
    assert label_schema.cast_labels(pa.array([True, None]), TEXT).to_pylist() == ["True", None]


def test_whole_numbers_become_floats_also_where_they_are_too_large_for_all_digits():
    found = label_schema.cast_labels(pa.array([1, None, 2**60 + 1]), FLOAT)
    assert found.to_pylist() == [1.0, None, float(2**60)]


def test_missing_labels_take_any_type():
    for kind in (TEXT, INT, FLOAT, BOOL):
        found = label_schema.cast_labels(pa.nulls(2), kind)
        assert found.type == kind
        assert found.to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        (pa.int8(), INT),
        (pa.uint16(), INT),
        (pa.int64(), INT),
        (pa.float16(), FLOAT),
        (pa.float32(), FLOAT),
        (pa.binary(), TEXT),
        (pa.large_string(), TEXT),
        (pa.bool_(), BOOL),
        (pa.null(), NONE),
    ],
)
def test_every_label_has_one_of_few_types(kind, label):
    assert label_schema.find_label_type(kind, "here") == label


def test_what_is_no_label_is_refused():
    for kind in (pa.list_(pa.float32()), pa.date32(), pa.struct([("a", pa.int64())])):
        with pytest.raises(InputError, match="here"):
            label_schema.find_label_type(kind, "here")


def test_splits_of_text_labels_and_numbers_share_text(planned, tmp_path):
    sources = {
        "folder": make_folder(tmp_path / "f", {"cat": 1}),
        "numbers": npz(tmp_path / "n.npz", np.array([7, 8])),
        "floats": npz(tmp_path / "x.npz", np.array([0.5])),
    }
    table = columns(*planned(sources))
    assert table.schema.field("label").type == TEXT
    assert table["label"].to_pylist() == ["cat", "7", "8", "0.5"]


def test_splits_of_whole_numbers_and_floats_share_double(planned, tmp_path):
    sources = {
        "a": npz(tmp_path / "a.npz", np.array([1, 2], np.uint8)),
        "b": npz(tmp_path / "b.npz", np.array([0.5], np.float32)),
    }
    table = columns(*planned(sources))
    assert table.schema.field("label").type == FLOAT
    assert table["label"].to_pylist() == [1.0, 2.0, 0.5]


def test_a_folder_without_subfolders_has_no_labels_and_leaves_the_type_to_the_others(
    planned, tmp_path
):
    make_folder(tmp_path / "flat", {".": 2})
    numbers = npz(tmp_path / "n.npz", np.array([7, 8]))
    table = columns(*planned({"flat": tmp_path / "flat", "numbers": numbers}))
    assert table.schema.field("label").type == INT
    assert table["label"].to_pylist() == [None, None, 7, 8]
    table = columns(*planned({"flat": tmp_path / "flat"}))
    assert table.schema.field("label").type == TEXT
    assert table["label"].to_pylist() == [None, None]


def test_extra_columns_are_the_union_over_the_splits(planned, tmp_path):
    sources = {
        "a": listing(tmp_path / "a.csv", "x.png,1,p,q", header="path,label,age,site"),
        "b": listing(tmp_path / "b.csv", "n,y.png,2", header="notes,path,label"),
        "c": listing(tmp_path / "c.csv", "s,z.png,3", header="site,path,label"),
    }
    outline, folder = planned(sources)
    assert outline.extras == ("age", "site", "notes")
    table = columns(outline, folder)
    assert table.column_names == ["index", "key", "label", "split", "age", "site", "notes"]
    assert table["age"].to_pylist() == ["p", None, None]
    assert table["site"].to_pylist() == ["q", None, "s"]
    assert table["notes"].to_pylist() == [None, "n", None]
    assert table["split"].to_pylist() == ["a", "b", "c"]


# Keys


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a/b.png", "a/b.png"),
        ("é/猫.png", "é/猫.png"),
        (os.fsdecode(b"caf\xe9/\xff.png"), r"caf\xe9/\xff.png"),
        (b"caf\xe9", r"caf\xe9"),
        ("é".encode(), "é"),
        (r"C:\x41", r"C:\x41"),
        ("half \ud800", r"half \xed\xa0\x80"),
        ("", ""),
    ],
)
def test_bytes_that_are_not_utf8_are_written_in_hex(path, key):
    assert make_key(path) == key


@given(st.binary())
def test_every_key_is_valid_text(path):
    make_key(path).encode()
    assert make_key(os.fsdecode(path)) == make_key(path)


# Shards


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    size=st.integers(1, 9),
    limit=st.none() | st.integers(1, 25),
)
def test_shards_cut_every_split_at_the_same_places(planned, tmp_path, counts, size, limit):
    sources = {
        f"s{at}": listing(tmp_path / f"s{at}.csv", *(f"{at}-{i}.png,{i}" for i in range(count)))
        for at, count in enumerate(counts)
    }
    outline, folder = planned(sources, shard_size=size, limit=limit)
    kept = [min(count, limit or count) for count in counts]
    assert [split.records for split in outline.splits] == kept
    assert [split.shards for split in outline.splits] == [math.ceil(count / size) for count in kept]
    assert outline.records == sum(kept)
    for split, count in zip(outline.splits, kept, strict=True):
        assert split.shards is not None
        rows = [planning.read_shard(folder, split, local).num_rows for local in range(split.shards)]
        assert all(length == size for length in rows[:-1])
        assert sum(rows) == count
    table = columns(outline, folder)
    expected = [f"{at}-{i}.png" for at, count in enumerate(kept) for i in range(count)]
    assert table["key"].to_pylist() == expected
    assert table["index"].to_pylist() == list(range(sum(kept)))
    assert table["label"].to_pylist() == [str(i) for count in kept for i in range(count)]


def test_many_shards_are_read_one_at_a_time(planned, tmp_path):
    rows = [f"{i}.png,{i}" for i in range(1200)]
    outline, folder = planned({"s": listing(tmp_path / "s.csv", *rows)}, shard_size=2)
    (split,) = outline.splits
    assert split.shards == 600
    for local in (0, 255, 256, 257, 511, 512, 599):
        assert planning.read_shard(folder, split, local)["label"].to_pylist() == [
            str(2 * local),
            str(2 * local + 1),
        ]


def test_the_plan_is_parquet_below_plan(planned, tmp_path):
    _, folder = planned({"s": listing(tmp_path / "s.csv", "a.png,1")})
    files = [path for path in Path(folder.path).rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert file.relative_to(folder.path).parts[0] == "plan"
        assert pq.read_table(file)["key"].to_pylist() == ["a.png"]


def test_the_shard_size_without_being_asked_depends_on_the_source_alone(planned, tmp_path):
    files = listing(tmp_path / "s.csv", "a.png,1")
    small, large = npz(tmp_path / "s.npz", [1]), npz(tmp_path / "l.npz", [1], size=512)
    outline, _ = planned(
        {"files": files, "small": small, "large": large}, shard_size=None, batch_size=8
    )
    sizes = {split.name: split.shard_size for split in outline.splits}
    assert sizes["files"] == 512
    assert sizes["small"] == 512
    assert 8 <= sizes["large"] < 512
    assert sizes["large"] % 8 == 0


def test_an_outline_comes_back_from_the_run_folder(planned, tmp_path):
    outline, folder = planned(
        {"a": listing(tmp_path / "a.csv", "x.png,1,9", header="path,label,age")}
    )
    planning.save(folder, outline)
    assert planning.load(folder) == outline
    assert json.loads(folder.read("plan/plan.json"))


# Noticing change


def changed(planned: Planner, before: dict[str, Any], change: Callable[[], Any]) -> str | None:
    """Plan, change the sources, plan again; say the first difference, None where there is none."""
    old, kept = planned(before)
    change()
    new, fresh = planned(before)
    (was,), (now,) = old.splits, new.splits
    if was.digest == now.digest:
        return None
    return planning.describe_difference(kept, fresh, was, now)


def test_a_file_that_was_added_is_named(planned, tmp_path):
    root = make_folder(tmp_path / "f", {"a": 4, "b": 4})
    said = changed(planned, {"f": root}, lambda: (root / "a" / "0002b.png").write_bytes(b"x"))
    assert "a/0002b.png" in str(said)


def test_a_file_that_was_added_at_the_end_is_named(planned, tmp_path):
    root = make_folder(tmp_path / "f", {"a": 6})
    said = changed(planned, {"f": root}, lambda: (root / "z.png").write_bytes(b"x"))
    assert "'z.png'" in str(said)
    assert "added" in str(said)


def test_a_file_that_is_gone_is_named(planned, tmp_path):
    root = make_folder(tmp_path / "f", {"a": 4})
    said = changed(planned, {"f": root}, (root / "a" / "0003.png").unlink)
    assert "a/0003.png" in str(said)
    assert "gone" in str(said)
    said = changed(planned, {"f": root}, (root / "a" / "0001.png").unlink)
    assert "a/0001.png" in str(said)


def test_a_file_of_another_size_is_named(planned, tmp_path):
    root = make_folder(tmp_path / "f", {"a": 4})
    said = changed(planned, {"f": root}, lambda: (root / "a" / "0002.png").write_bytes(b"x"))
    assert "a/0002.png" in str(said)
    assert "size" in str(said)


def test_images_of_an_array_that_changed_are_named(planned, tmp_path):
    file = npz(tmp_path / "s.npz", [1, 2])
    images = np.ones((2, 2, 2, 3), np.uint8)
    said = changed(planned, {"s": file}, lambda: np.savez(file, images=images, labels=[1, 2]))
    assert said == "its images"


def test_a_label_that_changed_is_named_with_both_values(planned, tmp_path):
    file = listing(tmp_path / "s.csv", *(f"{i}.png,cat" for i in range(7)))
    text = file.read_text()
    said = changed(
        planned, {"s": file}, lambda: file.write_text(text.replace("4.png,cat", "4.png,dog"))
    )
    for token in ("4.png", "label", "cat", "dog"):
        assert token in str(said)


def test_an_extra_that_changed_is_named(planned, tmp_path):
    file = listing(tmp_path / "s.csv", "a.png,1,30", "b.png,1,31", header="path,label,age")
    text = file.read_text()
    said = changed(planned, {"s": file}, lambda: file.write_text(text.replace("31", "32")))
    for token in ("b.png", "age", "31", "32"):
        assert token in str(said)


def test_a_label_that_is_no_number_is_not_mistaken_for_a_change(planned, tmp_path):
    file = npz(tmp_path / "s.npz", np.array([np.nan, 1.0, 2.0]))
    said = changed(planned, {"s": file}, lambda: npz(file, np.array([np.nan, 1.0, 3.0])))
    assert "'2'" in str(said)
    assert "3.0" in str(said)


def test_modification_times_and_places_are_no_change(planned, tmp_path):
    root = make_folder(tmp_path / "f", {"a": 3})
    assert changed(planned, {"f": root}, lambda: os.utime(root / "a" / "0001.png", (1, 1))) is None
    moved = tmp_path / "moved"
    (old,), (new,) = planned({"f": root})[0].splits, planned({"f": root.rename(moved)})[0].splits
    assert old.digest == new.digest


def test_pictures_of_another_shape_in_an_npz_are_a_change(planned, tmp_path):
    file = npz(tmp_path / "s.npz", np.array([1, 2]), size=2)
    said = changed(planned, {"s": file}, lambda: npz(file, np.array([1, 2]), size=3))
    assert "(2, 2, 3)" in str(said)
    assert "(3, 3, 3)" in str(said)


# Plan rows of a stream


def stream_rows(labels: list[Any], crcs: list[int]) -> pa.Table:
    keys = [str(i) for i in range(len(labels))]
    return pa.table(
        {"key": keys, "label": pa.array(labels), "crc": pa.array(crcs, pa.int64())},
    )


@pytest.fixture
def stream_split() -> planning.SplitPlan:
    return planning.SplitPlan(
        ordinal=0,
        name="s",
        root="m:f",
        label_type="double",
        extras=(),
        shard_size=4,
        shards_per_file=1,
    )


def test_a_stream_is_compared_with_what_it_gave_before(tmp_path, stream_split):
    folder = Folder.open(str(tmp_path / "r"))
    rows = stream_rows([1.0, 2.0, 3.0], [5, 6, 7])
    assert planning.write_shard(folder, stream_split, 0, rows) is None
    assert planning.read_shard(folder, stream_split, 0).equals(rows)
    assert planning.write_shard(folder, stream_split, 0, rows) is None
    pixels = stream_rows([1.0, 2.0, 3.0], [5, 6, 8])
    assert planning.write_shard(folder, stream_split, 0, pixels) == 2
    label = stream_rows([1.0, 9.0, 3.0], [5, 6, 7])
    assert planning.write_shard(folder, stream_split, 0, label) == 1
    assert planning.write_shard(folder, stream_split, 0, rows.slice(0, 2)) == 2
    longer = stream_rows([1.0, 2.0, 3.0, 4.0], [5, 6, 7, 8])
    assert planning.write_shard(folder, stream_split, 0, longer) == 3
    assert planning.read_shard(folder, stream_split, 0).equals(rows)


def test_a_stream_whose_labels_are_no_numbers_repeats_itself(tmp_path, stream_split):
    folder = Folder.open(str(tmp_path / "r"))
    rows = stream_rows([float("nan"), 2.0], [5, 6])
    assert planning.write_shard(folder, stream_split, 0, rows) is None
    again = stream_rows([float("nan"), 2.0], [5, 6])
    assert planning.write_shard(folder, stream_split, 0, again) is None
    other = stream_rows([float("nan"), 3.0], [5, 6])
    assert planning.write_shard(folder, stream_split, 0, other) == 1
