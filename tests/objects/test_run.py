# SPDX-License-Identifier: Apache-2.0
"""Everything on an object store: sources, model, weights and the run folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import object_store
import pytest
from conftest import Command, make_folder
from object_store import Faults
from pyarrow import fs
from samples import results_of, save_encoder

import ray_embed


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with object_store.server() as address:
        yield address


@pytest.fixture
def store(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Set the environment for a store whose faults can be set."""
    faults = Faults()
    with object_store.proxy(address, faults) as proxied:
        for name, value in object_store.environment(proxied).items():
            monkeypatch.setenv(name, value)
        object_store.make_bucket("bucket")
        yield faults


def fetched(uri: str, into: Path) -> Path:
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    fs.copy_files(uri, str(into))
    return into


def test_a_run_under_faults_gives_the_bytes_of_a_local_one(
    ray_embed_process: Command, tmp_path: Path, store: Faults
) -> None:
    data = make_folder(tmp_path / "data", {"a": 60, "b": 40})
    (data / "a" / "0007.png").write_bytes(b"no picture")
    save_encoder(tmp_path / "encoder.keras")
    object_store.upload(data, "s3://bucket/data")
    object_store.upload(tmp_path / "encoder.keras", "s3://bucket/encoder.keras")
    options = ["--shard-size", 16, "--batch-size", 8, "--actors", 2]
    local = ray_embed_process(
        "run", "--source", "data", "--model", "encoder.keras", "--out", "local", *options
    )
    assert local.code == 0, local.err
    store.share = 0.05
    away = ray_embed_process(
        *("run", "--source", "s3://bucket/data", "--model", "s3://bucket/encoder.keras"),
        *("--out", "s3://bucket/run", *options),
    )
    assert away.code == 0, away.err
    assert "100 records: 99 embedded, 1 rejected" in away.out
    assert store.done["500"] and store.done["reset"] and store.done["cut off"], store.done
    store.share = 0
    assert results_of(fetched("s3://bucket/run", tmp_path / "away")) == results_of(
        tmp_path / "local"
    )
    assert ray_embed.load("s3://bucket/run").rows == 99
