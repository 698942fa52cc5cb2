# SPDX-License-Identifier: Apache-2.0
"""Files without a known ending are recognized by their content."""

import h5py
import numpy as np
import pytest
from support.containers import example, pixels_of, sample, write_parquet, write_tar, write_tfrecord
from support.opened import list_records, open_source

from ray_embed.errors import InputError


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        file["images"] = pixels_of(range(3))


def write_npy(path):
    with path.open("wb") as file:
        np.save(file, pixels_of(range(3)))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_parquet(path, range(3)),
        lambda path: write_tar(path, [sample(seed) for seed in range(3)]),
        lambda path: write_tfrecord(path, [example(seed) for seed in range(3)]),
        write_hdf5,
        write_npy,
    ],
    ids=["parquet", "tar", "tfrecord", "hdf5", "npy"],
)
@pytest.mark.parametrize("name", ["data", "data.bin"])
def test_file_is_recognized_by_its_content(write, name, tmp_path):
    write(tmp_path / name)
    assert list_records(open_source(tmp_path / name)).rows.num_rows == 3


@pytest.mark.parametrize("content", [b"", b"text\n" * 200, bytes(600)])
def test_unknown_content_is_refused_with_the_types_that_are_known(content, tmp_path):
    (tmp_path / "data.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"data\.bin: unsupported file type; expected .*\.parquet"):
        open_source(tmp_path / "data.bin")
