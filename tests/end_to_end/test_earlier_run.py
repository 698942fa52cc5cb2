# SPDX-License-Identifier: Apache-2.0
"""A run folder of an earlier version is read, verified, and resumed to the same bytes."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.command import Command

import ray_embed as package
from ray_embed.runs import identity

EARLIER = Path(__file__).parent / "earlier_run"
# The time of all sources, see earlier_run/make.py.
TIME = 1_767_323_045
ROWS = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Unpack the earlier run beside its sources, in a folder of another name than then."""
    with zipfile.ZipFile(EARLIER / "run.zip") as archive:
        archive.extractall(tmp_path)
    made_with = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["versions"]
    if made_with != identity.read_versions():
        pytest.skip(f"it was made with other versions, with which no run is resumed: {made_with}")
    for path in (tmp_path / "test.npz", *(tmp_path / "valid").rglob("*.png")):
        os.utime(path, (TIME, TIME))
    return tmp_path


def contents(run: Path) -> dict[str, bytes]:
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and ".tmp" not in path.parts
    }


def resume(ray_embed: Command, *more: str):
    return ray_embed(
        "run", "--out", "run", "--source", "valid=valid", "--source", "test=test.npz",
        "--model", "encoder.keras", "--import", "earlier_layers", "--shard-size", 4,
        "--scale", "none", "--engine", "tensorflow", "--batch-size", 4, *more,
    )  # fmt: skip


def test_earlier_run_is_read(folder: Path, ray_embed: Command):
    run = package.load(str(folder / "run"))
    features, labels = run.to_numpy()
    assert features.shape == (ROWS, 4)
    assert (run.rows, run.rejects) == (ROWS, 1)
    assert labels.tolist()[-4:] == ["a", "b", "b", "c"]
    assert run.to_pca().shape[0] == ROWS
    checked = ray_embed("status", "run", "--verify")
    assert checked.code == 0, checked.err
    assert "no problems" in checked.out
    assert "NOT" not in checked.out


def test_earlier_run_is_resumed_with_the_same_bytes(folder: Path, ray_embed: Command):
    before = contents(folder / "run")
    for name in ("features/part-00000001.parquet", "thumbnails/part-00000003.parquet"):
        (folder / "run" / name).unlink()
    (folder / "run" / "features" / "part-00000003.parquet").unlink()
    (folder / "run" / "pca.parquet").unlink()
    resumed = resume(ray_embed)
    assert resumed.code == 0, resumed.err
    after = contents(folder / "run")
    assert set(after) == set(before)
    exact = [
        name
        for name in before
        if name.startswith(("encoder/", "features/", "rejects/", "thumbnails/", "plan/"))
        # It names the folders of the sources.
        and name != "plan/plan.json"
    ]
    exact += ["projector/metadata.tsv", "projector/projector_config.pbtxt", "projector/sprite.png"]
    assert [name for name in exact if after[name] != before[name]] == []


def test_components_of_an_earlier_run_are_the_same_numbers(folder: Path, ray_embed: Command):
    before = pq.read_table(folder / "run" / "pca.parquet")
    reduced = ray_embed("reduce", "run")
    assert reduced.code == 0, reduced.err
    after = pq.read_table(folder / "run" / "pca.parquet")
    assert after.schema.equals(before.schema, check_metadata=True)
    np.testing.assert_allclose(
        after["variance"].to_numpy()[1:], before["variance"].to_numpy()[1:], rtol=1e-9, atol=1e-6
    )


def test_other_options_are_refused_for_an_earlier_run(folder: Path, ray_embed: Command):
    before = contents(folder / "run")
    refused = resume(ray_embed, "--pool", "gmp")
    assert refused.code == 2
    assert "layers: was [['output', 'gap', 4]], is [['output', 'gmp', 4]]" in refused.err
    assert contents(folder / "run") == before
