# SPDX-License-Identifier: Apache-2.0
"""Which parts exist, by their names alone; and reading some rows of a part."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from ray_embed.errors import DamagedError
from ray_embed.storage import part_files
from ray_embed.storage.filesystem import Folder


@pytest.fixture(params=["local", "another file system"])
def folder(request, tmp_path):
    """Return a run folder on a local disk, or on a file system that only pyarrow reaches."""
    (tmp_path / "features").mkdir()
    if request.param == "local":
        return Folder.open(str(tmp_path))
    return Folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "")


def touch(tmp_path, *names):
    for name in names:
        (tmp_path / "features" / name).touch()


def test_parts_are_in_the_order_of_their_numbers(folder, tmp_path):
    numbers = [100000000, 7, 99999999, 0, 12]
    touch(tmp_path, *(f"part-{number:08d}.parquet" for number in numbers))
    assert list(part_files.list_part_numbers(folder)) == sorted(numbers)


def test_files_with_other_names_are_ignored(folder, tmp_path):
    touch(
        tmp_path, "part-1.parquet", "part-00000001.parquet.tmp", "x.parquet",
        f"part-{10**30}.parquet", "part-00000002.parquet",
    )  # fmt: skip
    assert list(part_files.list_part_numbers(folder)) == [2]


def test_shards_with_a_part_are_finished(folder, tmp_path):
    touch(tmp_path, *(f"part-{number:08d}.parquet" for number in (0, 9, 1000)))
    done = part_files.FinishedShards(folder)
    assert done.count == 3
    assert [number for number in range(1100) if number in done] == [0, 9, 1000]
    assert 10**9 not in done


def test_missing_folder_has_no_parts(folder):
    assert list(part_files.list_part_numbers(folder, "rejects")) == []
    assert part_files.FinishedShards(Folder(folder.filesystem, folder.join("none"))).count == 0


COUNT = 200


@pytest.fixture
def pngs(folder):
    """Write a part with thumbnails, and return their contents."""
    contents = [f"thumbnail {number}".encode() * 40 for number in range(COUNT)]
    index = pa.array(range(COUNT))
    features = pa.table({"index": index})
    thumbnails = pa.table([index, pa.array(contents)], part_files.THUMBNAIL_SCHEMA)
    part = part_files.Part(0, features, part_files.REJECT_SCHEMA.empty_table(), thumbnails)
    part_files.write_part(folder, part, part_files.Owner("run", "records"), COUNT)
    return contents


@pytest.mark.parametrize(
    "rows", [None, [], [0], [COUNT - 1], [3, 31, 32, 33, 150], list(range(0, COUNT, 7))]
)
def test_thumbnails_of_some_rows_are_read(folder, pngs, rows):
    asked = None if rows is None else np.array(rows, np.int64)
    expected = pngs if rows is None else [pngs[row] for row in rows]
    assert part_files.read_thumbnails(folder, 0, asked, "records") == expected


def test_thumbnails_that_are_not_asked_for_are_not_read(folder, pngs, tmp_path):
    path = tmp_path / "thumbnails" / "part-00000000.parquet"
    content = bytearray(path.read_bytes())
    last = pq.read_metadata(path).row_group(6).column(1)
    content[last.data_page_offset + 40] ^= 1
    path.write_bytes(content)
    assert part_files.read_thumbnails(folder, 0, np.array([1, 40]), "records") == [
        pngs[1],
        pngs[40],
    ]
    with pytest.raises(DamagedError, match=r"thumbnails/part-00000000\.parquet: damaged"):
        part_files.read_thumbnails(folder, 0, None, "records")


def test_thumbnails_of_other_records_are_refused(folder, pngs):
    with pytest.raises(DamagedError, match="another run or shard"):
        part_files.read_thumbnails(folder, 0, None, "other records")
