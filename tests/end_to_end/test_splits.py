# SPDX-License-Identifier: Apache-2.0
"""Runs whose splits come from a column of a listing or from the folders of images."""

import json
from pathlib import Path

import pandas as pd
import pytest
from support.command import Command
from support.encoders import my_encoders
from support.pictures import make_folder
from support.sample_runs import contents

import ray_embed as package

OPTIONS = ("--model", "encoder.keras", "--engine", "tensorflow", "--shard-size", 4)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An encoder, and images in a folder per split, with a listing of all of them."""
    my_encoders.functional().save(tmp_path / "encoder.keras")
    for seed, split in enumerate(("test", "train")):
        make_folder(tmp_path / "data" / split, {"cat": 4, "dog": 3}, seed=seed * 100)
    paths = sorted(path.relative_to(tmp_path) for path in (tmp_path / "data").rglob("*.png"))
    rows = [{"path": str(path), "split": path.parts[1], "label": path.parts[2]} for path in paths]
    # The rows of a split are not beside each other.
    pd.DataFrame(rows[::2] + rows[1::2]).to_json(
        tmp_path / "list.jsonl", orient="records", lines=True
    )
    return tmp_path


def parts(run: Path) -> dict[str, bytes]:
    return {
        name: content
        for name, content in contents(run).items()
        if name.startswith(("features/", "plan/", "thumbnails/"))
    }


@pytest.mark.parametrize(
    ("source", "option"),
    [
        ("list.jsonl", ("--splits-from-column", "split")),
        ("data", ("--splits-from-folders",)),
    ],
)
def test_splits_are_resumed_and_have_a_baseline(ray_embed: Command, data: Path, source, option):
    command = ("extract", "--source", source, *option, *OPTIONS, "--out", "run")
    done = ray_embed(*command)
    assert done.code == 0, done.err
    run = package.load(str(data / "run"))
    table = run.to_table()
    assert table["split"].to_pylist() == ["train"] * 7 + ["test"] * 7
    folders = [key.split("/")[-2] for key in table["key"].to_pylist()]
    assert table["label"].to_pylist() == folders
    recorded = json.loads((data / "run" / "run.json").read_text())["config"]
    assert recorded["sources"] == {Path(source).stem: str(data / source)}
    assert recorded["label_column"] is None

    before = parts(data / "run")
    (data / "run/features/part-00000001.parquet").unlink()
    (data / "run/features/part-00000003.parquet").unlink()
    resumed = ray_embed(*command)
    assert resumed.code == 0, resumed.err
    assert parts(data / "run") == before

    evaluated = ray_embed("evaluate", "run", "--random-weights")
    assert evaluated.code == 0, evaluated.err
    baseline = package.load(str(data / "run/random-weights")).to_table()
    assert baseline.drop(["feature"]).equals(table.drop(["feature"]))
