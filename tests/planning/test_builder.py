# SPDX-License-Identifier: Apache-2.0
"""Planning a folder of any size: its order, what is held meanwhile, and the plan's digest."""

import os
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_embed import planning
from ray_embed.errors import InputError
from ray_embed.sources import image_folder, image_walk
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.external_sort import sort_names
from ray_embed.storage.filesystem import Folder

ANY_BYTES = st.binary(min_size=1, max_size=6).map(
    lambda name: name.replace(b"\0", b"n").replace(b"/", b"s")
)


def touch(root: Path, *names: str | bytes) -> None:
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass


def records(root: Path) -> list[dict[str, Any]]:
    source = image_folder.open_folder("s", root)
    return [row for batch in source.records(Counter()) for row in batch.to_pylist()]


def paths(root: Path) -> list[str]:
    return [os.fsdecode(row["path"]) for row in records(root)]


# The order


@given(st.lists(ANY_BYTES.map(os.fsdecode) | st.text('a\n"\\é猫🐈\ue000\uffff')), st.integers(1, 9))
def test_names_are_sorted_whatever_is_held(names, held):
    assert list(sort_names(iter(names), held)) == sorted(names)


def test_few_names_are_held_while_many_are_sorted():
    count = 200_000
    tracemalloc.start()
    try:
        found = sort_names((f"{at * 7919 % count:06d}.jpg" for at in range(count)), 5000)
        in_order = all(int(name[:6]) == at for at, name in enumerate(found))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert in_order
    # All of them are 13 MB.
    assert peak < 6e6


def test_temporary_files_are_closed_when_no_more_names_are_asked_for(monkeypatch, tmp_path):
    opened = []
    make = tempfile.TemporaryFile

    def keep(*arguments: Any, **options: Any) -> Any:
        opened.append(make(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr("ray_embed.sources.external_sort.tempfile.TemporaryFile", keep)
    found = sort_names(iter("dcba"), 2)
    assert next(found) == "a"
    found.close()  # type: ignore[attr-defined]
    assert len(opened) == 2
    assert all(file.closed for file in opened)


@pytest.mark.parametrize("count", [1, 2999, 3000, 3001, 6000, 7000])
def test_one_folder_of_more_files_than_are_held_comes_in_order(tmp_path, monkeypatch, count):
    monkeypatch.setattr(image_walk, "_NAMES_HELD", 3000)
    names = [f"{at * 7919 % count}.jpg" for at in range(count)]
    touch(tmp_path, *names)
    assert paths(tmp_path) == sorted(names)


def test_more_files_than_are_held_by_default_come_in_order(tmp_path):
    names = [f"{at * 7919 % 100_500}.jpg" for at in range(100_500)]
    for name in names:
        os.close(os.open(f"{tmp_path}/{name}", os.O_CREAT | os.O_WRONLY))
    assert len(names) > image_walk._NAMES_HELD
    assert paths(tmp_path) == sorted(names)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sets(st.lists(ANY_BYTES, min_size=1, max_size=3).map(tuple), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_any_tree_with_any_bytes_comes_in_the_order_of_whole_paths(
    tmp_path_factory, monkeypatch, trees, held
):
    monkeypatch.setattr(image_walk, "_NAMES_HELD", held)
    root = tmp_path_factory.mktemp("tree")
    # An "x" before each name: it is neither hidden nor "..".
    names = {b"/".join(b"x" + part for part in parts) + b".jpg" for parts in trees}
    touch(root, *names)
    found = records(root)
    assert [os.fsdecode(row["path"]) for row in found] == sorted(map(os.fsdecode, names))
    for row in found:
        first, slash, _ = row["path"].decode("utf-8", "backslashreplace").partition("/")
        assert row["label"] == (first if slash else None)
        assert row["key"] == row["path"].decode("utf-8", "backslashreplace")
        assert row["size"] == 0
        assert row["mtime"] is not None


def test_what_is_passed_over_is_counted_once_whatever_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(image_walk, "_NAMES_HELD", 2)
    touch(tmp_path, "a/1.jpg", "a/2.txt", "a/.h.jpg", ".hid/3.jpg", "b/4.jpg", "c.svg")
    (tmp_path / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    skipped: Counter[str] = Counter()
    found = [
        key
        for batch in image_folder.open_folder("s", tmp_path).records(skipped)
        for key in batch["key"].to_pylist()
    ]
    assert found == ["a/1.jpg", "b/4.jpg"]
    assert skipped == {"hidden": 2, ".txt": 1, ".svg": 1, "links to a parent folder": 1}


# Opening


def test_opening_a_folder_looks_no_further_than_the_first_image(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{at}.jpg" for at in range(500)))
    seen = []
    is_folder = image_walk._is_folder

    def look(entry: os.DirEntry[str]) -> bool:
        seen.append(entry.name)
        return is_folder(entry)

    monkeypatch.setattr(image_walk, "_is_folder", look)
    image_folder.open_folder("s", tmp_path)
    assert len(seen) == 1


def test_opening_finds_an_image_in_the_depth_and_refuses_a_folder_without(tmp_path):
    touch(tmp_path, "a/b/c.txt", "d/.e.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(InputError, match=r"no images in this folder \(.*1 \.txt.*\)"):
        image_folder.open_folder("s", tmp_path)
    touch(tmp_path, "a/b/d/e/f.PNG")
    assert paths(tmp_path) == ["a/b/d/e/f.PNG"]


# The digest


ROWS = st.lists(
    st.tuples(
        st.text(max_size=3),
        st.none() | st.sampled_from(["", "a", "nan", "\0"]),
        st.none() | st.integers(-(2**63), 2**63 - 1),
    ),
    min_size=1,
    max_size=30,
)


@dataclass(frozen=True)
class Rows:
    """A source of planned rows, as another form would have them."""

    info: SourceInfo
    batches: Callable[[], Iterator[pa.RecordBatch]]
    split: str = "s"
    kind: str = "files"
    location: str = "/"

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        return self.batches()


def listed(rows: list[tuple[Any, ...]], batch: int, label: pa.DataType | None = None) -> Rows:
    """A source of the rows (key, label, size), in batches of that many."""
    kind = label or pa.string()
    schema = {"key": pa.string(), "label": kind, "path": pa.binary(), "size": pa.int64()}

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), batch):
            keys, labels, sizes = zip(*rows[start : start + batch], strict=True)
            columns = (keys, labels, [key.encode() for key in keys], sizes)
            arrays = {
                name: pa.array(values, schema[name])
                for name, values in zip(schema, columns, strict=True)
            }
            yield pa.record_batch({**arrays, "mtime": pa.array(sizes, pa.int64())})

    return Rows(SourceInfo(label_type=kind), batches)


def digest(source: Rows, target: Path, shard_size: int = 4) -> str | None:
    outline = planning.make_plan(
        [source], {}, Folder.open(str(target)), shard_size=shard_size, batch_size=1, limit=None
    )
    return outline.splits[0].digest


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ROWS, st.integers(1, 9), st.integers(1, 9))
def test_the_digest_does_not_depend_on_batches_and_shards(tmp_path_factory, rows, batch, size):
    target = tmp_path_factory.mktemp("plan")
    whole = digest(listed(rows, len(rows)), target / "a", 64)
    assert digest(listed(rows, batch), target / "b", size) == whole


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([("a", None, 1)], [("a", "", 1)]),
        ([("a", "b", 1)], [("ab", "", 1)]),
        ([("a", "x", 1), ("bc", "x", 1)], [("ab", "x", 1), ("c", "x", 1)]),
        ([("a", "x", 1), ("b", "y", 1)], [("b", "y", 1), ("a", "x", 1)]),
        ([("a", "x", None)], [("a", "x", 0)]),
        ([("a", "x", 12), ("b", "x", 3)], [("a", "x", 1), ("b", "x", 23)]),
        ([("a", "x", 1)], [("a", "x", 1), ("a", "x", 1)]),
    ],
)
def test_other_records_have_another_digest(tmp_path, before, now):
    assert digest(listed(before, 8), tmp_path / "a") != digest(listed(now, 8), tmp_path / "b")


def test_a_nan_is_like_any_other_and_minus_zero_is_not_zero(tmp_path):
    negative = np.copysign(np.nan, -1.0)
    found = [
        digest(listed([("a", value, 1)], 8, pa.float64()), tmp_path / str(at))
        for at, value in enumerate([np.nan, negative, 0.0, -0.0])
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


# The run folder


def test_planned_records_are_copied_as_they_are(tmp_path):
    rows = [(str(at), None, at) for at in range(600)]
    source, target = Folder.open(str(tmp_path / "a")), Folder.open(str(tmp_path / "b"))
    outline = planning.make_plan(
        [listed(rows, 100)], {}, source, shard_size=2, batch_size=1, limit=None
    )
    planning.copy_records(outline, source, target)
    (split,) = outline.splits
    files = sorted({split.file_of(shard) for shard in range(split.shards or 0)})
    assert len(files) == 2
    assert [file for file in files if target.read(file) != source.read(file)] == []
    keys = [key for file in files for key in pq.read_table(target.join(file))["key"].to_pylist()]
    assert keys == [row[0] for row in rows]
