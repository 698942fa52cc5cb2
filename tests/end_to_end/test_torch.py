# SPDX-License-Identifier: Apache-2.0
"""PyTorch encoders on the command line: runs, resuming, sweeps, layers and bad input."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Command
from support.encoders import PROJECT, pixels
from support.features import assert_features_equal
from support.pictures import make_folder
from support.sample_runs import part_files, read_parts, read_results

import ray_embed as package
from ray_embed import RunConfig
from ray_embed.encoders.engines.openvino import is_openvino_installed

torch = pytest.importorskip("torch", reason="PyTorch is large: pip install torch")

import my_torch  # noqa: E402

GRAPH = "openvino.zip" if is_openvino_installed() else "model.pt2"

SIDES = (16, 20)
OPTIONS = (*("--image-size", "16,20", "--shard-size", 4, "--batch-size", 3, "--cpus-per-actor", 1),)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images, one of which is none, and weights."""
    root = tmp_path_factory.mktemp("torch")
    make_folder(root / "images", {"cat": 9, "dog": 8})
    (root / "images" / "cat" / "0002.png").write_bytes(b"no picture")
    make_folder(root / "whole", {"cat": 3, "dog": 3})
    for number in (1, 2):
        torch.save(my_torch.encoder(number).state_dict(), root / f"epoch-{number}.pt")
    return root


@pytest.fixture(scope="module")
def finished(ray_session: None, data: Path) -> Path:
    """Make a run with one actor."""
    shutil.copy(PROJECT / "my_torch.py", data)
    with contextlib.chdir(data):
        package.run(
            RunConfig(
                sources={"images": "images"}, model="my_torch:encoder", out="run",
                image_size=SIDES, shard_size=4, batch_size=3, cpus_per_actor=1, actors=1,
            )
        )  # fmt: skip
    return data / "run"


@pytest.fixture(autouse=True)
def code(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "my_torch.py", tmp_path)


def words(data: Path, out: str, *more: Any) -> tuple[Any, ...]:
    model = ("--model", "my_torch:encoder")
    return ("--source", data / "images", *model, "--out", out, *OPTIONS, *more)


def call_torch(module: Any, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def test_a_run_has_the_features_of_the_module(
    ray_embed: Command, data: Path, tmp_path: Path
) -> None:
    done = ray_embed(
        "run", "--source", data / "whole", "--model", "my_torch:encoder", "--out", "run",
        "--layer", "maps", "--layer", "head", *OPTIONS,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "it is put into evaluation mode" in done.err
    assert "channels first: images are transposed" in done.err
    table = read_parts(tmp_path / "run")
    module, given = my_torch.encoder(), pixels(data / "whole", SIDES) / 255
    vectors = call_torch(module, given)
    maps = call_torch(torch.nn.Sequential(*list(module.children())[:2], torch.nn.ReLU(),
                                          module.maps), given)  # fmt: skip
    for column, expected in (("feature_maps", maps.mean((2, 3))), ("feature_head", vectors)):
        assert_features_equal(np.stack(table[column].to_numpy()), expected)
    kept = {path.name for path in (tmp_path / "run" / "encoder").iterdir()}
    assert kept == {"encoder.json", GRAPH, "weights.npz"}
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "torch" in manifest["identity"]["versions"]


def test_the_number_of_actors_changes_no_byte(
    ray_embed: Command, data: Path, finished: Path, tmp_path: Path
) -> None:
    assert read_parts(finished, "rejects")["key"].to_pylist() == ["cat/0002.png"]
    done = ray_embed("run", *words(data, "run", "--actors", 3))
    assert done.code == 0, done.err
    assert read_results(tmp_path / "run") == read_results(finished)


def test_a_run_goes_on_where_it_ended(
    ray_embed: Command, data: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for part in part_files(tmp_path / "run")[1:3]:
        part.unlink()
    done = ray_embed("run", *words(data, "run"))
    assert done.code == 0, done.err
    assert read_results(tmp_path / "run") == read_results(finished)
    done = ray_embed("run", *words(data, "run", "--weights", data / "epoch-2.pt"))
    assert done.code == 2
    assert "model weights: was" in done.err
    assert "model architecture" not in done.err


def test_random_weights_stay_the_same_when_a_run_goes_on(
    ray_embed: Command, data: Path, tmp_path: Path
) -> None:
    given = ("--source", data / "whole", "--model", "my_torch:untrained", "--out", "run", *OPTIONS)
    assert ray_embed("run", *given).code == 0
    before = read_results(tmp_path / "run")
    part_files(tmp_path / "run")[0].unlink()
    done = ray_embed("run", *given)
    assert done.code == 0, done.err
    assert read_results(tmp_path / "run") == before


def test_a_sweep_over_weights(
    ray_embed: Command, data: Path, finished: Path, tmp_path: Path
) -> None:
    weights = ("--weights", data / "epoch-1.pt", "--weights", data / "epoch-2.pt")
    source = ("--source", data / "images", "--model", "my_torch:untrained")
    done = ray_embed("sweep", *source, *weights, "--out", "runs", *OPTIONS)
    assert done.code == 0, done.err
    features = [
        read_parts(run)["feature"].to_pylist()
        for run in (finished, *(tmp_path / "runs" / f"epoch-{number}" for number in (1, 2)))
    ]
    assert features[0] == features[1] != features[2]


def test_random_weights_are_the_same_in_each_run(
    ray_embed: Command, data: Path, tmp_path: Path
) -> None:
    source = ("--source", data / "whole", "--model", "my_torch:encoder", *OPTIONS)
    for out in ("a", "b"):
        done = ray_embed("run", *source, "--weights", "random", "--out", out)
        assert done.code == 0, done.err
    assert read_results(tmp_path / "a") == read_results(tmp_path / "b")


def test_an_exported_program_has_the_same_features(
    ray_embed: Command, data: Path, finished: Path, tmp_path: Path
) -> None:
    module = my_torch.encoder().eval()
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    example = (torch.zeros(4, 3, *SIDES),)
    torch.export.save(
        torch.export.export(module, example, dynamic_shapes=batch), tmp_path / "encoder.pt2"
    )
    done = ray_embed(
        "run", "--source", data / "images", "--model", "encoder.pt2", "--out", "run", *OPTIONS
    )
    assert done.code == 0, done.err
    one, other = (np.stack(read_parts(run)["feature"].to_numpy()) for run in (
        tmp_path / "run", finished))  # fmt: skip
    assert_features_equal(one, other)


def test_layers_are_listed_with_their_shapes(command: Command) -> None:
    done = command("layers", "--model", "my_torch:encoder", "--image-size", "16,20")
    assert done.code == 0, done.err
    assert "maps\t(N, 10, 8, 10)" in done.out.splitlines()
    assert "head\t(N, 8)" in done.out.splitlines()


def test_a_missing_image_size_ends_with_one_message(ray_embed: Command, data: Path) -> None:
    done = ray_embed(
        "run", "--source", data / "whole", "--model", "my_torch:encoder", "--out", "run"
    )
    assert done.code == 2
    assert "it has no fixed input size; give --image-size H,W" in done.err
    assert "Traceback" not in done.err
