# SPDX-License-Identifier: Apache-2.0
"""Which parts exist: read from their names alone, in the order of the shards."""

import pytest
from pyarrow import fs

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
