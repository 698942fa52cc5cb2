# SPDX-License-Identifier: Apache-2.0
"""Files that were made to break a decoder are judged in larger files as they are in a folder."""

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.containers import write_tar, write_tfrecord
from support.sample_runs import read_parts, save_encoder

import ray_embed

sys.path.insert(0, str(Path(__file__).parent))
import hostile

# Harmed files begin after those of the other folders, of which there are some 500.
FILES = 1000


def read_files(root: Path) -> list[bytes]:
    """Return the contents in the order of a source: by relative path, in code points."""
    prefix = os.path.join(root, "")
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]
    return [Path(path).read_bytes() for path in sorted(paths, key=lambda p: p[len(prefix) :])]


def write_containers(contents: list[bytes], root: Path) -> dict[str, str]:
    """Write one file of each type; return the sources by split."""
    pq.write_table(pa.table({"image": contents}), root / "d.parquet", row_group_size=100)
    samples = [(f"{number:06d}", {"png": content}) for number, content in enumerate(contents)]
    write_tar(root / "d.tar", samples)
    write_tfrecord(root / "d.tfrecord", [{"image/encoded": content} for content in contents])
    return {ending: str(root / f"d.{ending}") for ending in ("parquet", "tar", "tfrecord")}


def read_reasons(run: Path, split: str) -> list[str | None]:
    """Return the reason of each reject of a split and None for each row, in order."""
    tables = [read_parts(run), read_parts(run, "rejects")]
    records = [
        (record["index"], record.get("reason"))
        for table in tables
        for record in table.filter(pc.equal(table["split"], split)).to_pylist()
    ]
    return [reason for _, reason in sorted(records)]


@pytest.mark.slow
def test_hostile_files_have_the_same_reasons_in_every_type_of_source(ray_session, tmp_path):
    hostile.make(tmp_path / "files", FILES, 0)
    contents = read_files(tmp_path / "files")
    sources = {"folder": str(tmp_path / "files")} | write_containers(contents, tmp_path)
    run = tmp_path / "run"
    ray_embed.extract(
        ray_embed.RunConfig(
            sources=sources,
            model=str(save_encoder(tmp_path / "m.keras")),
            out=str(run),
            actors=1,
            cpus_per_actor=1,
        )
    )
    expected = read_reasons(run, "folder")
    assert len(expected) == len(contents) >= FILES
    assert len(set(expected)) > 4
    for split in sources:
        assert read_reasons(run, split) == expected, split
