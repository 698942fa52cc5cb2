# SPDX-License-Identifier: Apache-2.0
"""Runs go on with the encoder in their folder if the file of the model is gone."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.command import Command
from support.onnx_files import save_onnx
from support.pictures import make_folder
from support.sample_runs import part_files, read_results, save_encoder

OPTIONS = ("--shard-size", 4, "--batch-size", 3, "--cpus-per-actor", 1, "--actors", 1)
GONE = "the file of the model is gone: the run goes on with the encoder in its folder"


def interrupt(run: Path) -> None:
    """Remove what an interrupted run would not have written yet."""
    for part in part_files(run)[1:]:
        part.unlink()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", {"a": 6, "b": 5})


def words(model: str, *more: Any) -> tuple[Any, ...]:
    return ("run", "--model", model, "--source", "data", "--out", "run", *OPTIONS, *more)


@pytest.mark.parametrize("name", ["m.onnx", "m.keras"])
def test_a_run_goes_on_without_the_model(
    ray_embed: Command, data: Path, tmp_path: Path, name: str
) -> None:
    model = save_onnx(tmp_path / name) if name == "m.onnx" else save_encoder(tmp_path / name)
    (tmp_path / "mine.py").write_text("def halve(images):\n    return images / 510\n")
    options = words(name, "--preprocess", "mine:halve")
    assert ray_embed(*options).code == 0
    expected = read_results(tmp_path / "run")
    manifest = (tmp_path / "run" / "run.json").read_bytes()
    interrupt(tmp_path / "run")
    model.unlink()
    done = ray_embed(*options)
    assert done.code == 0, done.err
    assert GONE in done.err
    assert read_results(tmp_path / "run") == expected
    assert (tmp_path / "run" / "run.json").read_bytes() == manifest


def test_other_options_need_the_model(ray_embed: Command, data: Path, tmp_path: Path) -> None:
    model = save_onnx(tmp_path / "m.onnx")
    assert ray_embed(*words("m.onnx")).code == 0
    model.unlink()
    for changed in (
        words("m.onnx", "--layer", "maps"),
        words("other.onnx"),
        words("m.onnx", "--overwrite"),
        words("m.onnx", "--weights", "w.h5"),
    ):
        done = ray_embed(*changed)
        assert done.code == 2
        assert "no such file" in done.err
    assert ray_embed("run", "--model", "m.onnx", "--source", "data", "--out", "new").code == 2
    assert not (tmp_path / "new").exists()


def test_an_encoder_that_is_damaged_cannot_be_used(
    ray_embed: Command, data: Path, tmp_path: Path
) -> None:
    model = save_onnx(tmp_path / "m.onnx")
    assert ray_embed(*words("m.onnx")).code == 0
    model.unlink()
    shutil.copy(tmp_path / "run" / "run.json", tmp_path / "run" / "encoder" / "model.onnx")
    done = ray_embed(*words("m.onnx"))
    assert done.code == 2
    assert "model.onnx: it is missing or damaged" in done.err
