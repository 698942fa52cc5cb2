# SPDX-License-Identifier: Apache-2.0
"""ONNX encoders on the command line: runs, resuming, sweeps, object stores, and bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from pyarrow import fs
from support.command import Command
from support.encoders import pixels
from support.features import assert_features_equal
from support.onnx_files import (
    FIRST,
    MAPS,
    SIDES,
    VECTOR,
    call_onnxruntime,
    channels_first,
    conv_nodes,
    random_weights,
    save_onnx,
)
from support.pictures import make_folder
from support.sample_runs import part_files, read_parts, read_results, save_encoder

import ray_embed as package
from ray_embed import RunConfig

OPTIONS = ("--shard-size", 4, "--batch-size", 3, "--cpus-per-actor", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images, two of which are none, and encoders."""
    root = tmp_path_factory.mktemp("onnx")
    make_folder(root / "images", {"cat": 9, "dog": 8})
    (root / "images" / "cat" / "0002.png").write_bytes(b"no picture")
    (root / "images" / "dog" / "0000.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    make_folder(root / "whole", {"cat": 3, "dog": 3})
    save_onnx(root / "epoch-2.onnx")
    save_onnx(root / "epoch-10.onnx", weights=random_weights(1))
    save_onnx(root / "beside.onnx", external="beside.bin")
    return root


@pytest.fixture(scope="module")
def finished(ray_session: None, data: Path) -> Path:
    """Make a run with one actor."""
    out = data / "run"
    package.run(
        RunConfig(
            sources={"images": str(data / "images")}, model=str(data / "epoch-2.onnx"),
            out=str(out), shard_size=4, batch_size=3, cpus_per_actor=1, actors=1,
        )
    )  # fmt: skip
    return out


def words(data: Path, out: str, *more: Any, model: str = "epoch-2.onnx") -> tuple[Any, ...]:
    return ("--source", data / "images", "--model", data / model, "--out", out, *OPTIONS, *more)


def test_a_run_has_the_features_of_onnxruntime(
    ray_embed: Command, data: Path, tmp_path: Path
) -> None:
    done = ray_embed(
        "run", "--source", data / "whole", "--model", data / "epoch-2.onnx", "--out", "run",
        "--layer", MAPS, "--layer", VECTOR, *OPTIONS,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "channels first: images are transposed" in done.err
    assert "16×20 (stretch, bilinear), scaled to [0, 1]" in done.err
    table = read_parts(tmp_path / "run")
    given = channels_first(pixels(data / "whole", SIDES) / 255)
    maps, vectors = call_onnxruntime(data / "epoch-2.onnx", given, MAPS, VECTOR)
    for column, expected in (("feature_maps", maps.mean((2, 3))), ("feature_vector", vectors)):
        assert_features_equal(np.stack(table[column].to_numpy()), expected)
    kept = {path.name for path in (tmp_path / "run" / "encoder").iterdir()}
    assert kept == {"encoder.json", "model.onnx", "weights.npz"}
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "onnxruntime" in manifest["identity"]["versions"]


def test_broken_images_are_rejected(finished: Path) -> None:
    rejected = read_parts(finished, "rejects")
    assert rejected["key"].to_pylist() == ["cat/0002.png", "dog/0000.png"]
    assert read_parts(finished).num_rows == 15


def test_the_number_of_actors_changes_no_byte(
    ray_embed: Command, data: Path, finished: Path, tmp_path: Path
) -> None:
    assert ray_embed("run", *words(data, "run", "--actors", 3)).code == 0
    assert read_results(tmp_path / "run") == read_results(finished)


def test_a_run_goes_on_with_the_same_model_elsewhere(
    ray_embed: Command, data: Path, finished: Path, tmp_path: Path
) -> None:
    """The content counts, and actors read the encoder from the run folder."""
    shutil.copytree(finished, tmp_path / "run")
    for part in part_files(tmp_path / "run")[1:3]:
        part.unlink()
    # The same weights, in a file of another name and beside the model.
    done = ray_embed("run", *words(data, "run", model="beside.onnx"))
    assert done.code == 0, done.err
    assert read_results(tmp_path / "run") == read_results(finished)


def test_another_model_is_refused(
    ray_embed: Command, data: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    done = ray_embed("run", *words(data, "run", model="epoch-10.onnx"))
    assert done.code == 2
    assert "model weights: was" in done.err
    assert "model architecture" not in done.err


def test_a_damaged_encoder_in_the_run_folder_is_written_again(
    ray_embed: Command, data: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "encoder" / "model.onnx").write_bytes(b"damaged")
    part_files(tmp_path / "run")[0].unlink()
    done = ray_embed("run", *words(data, "run"))
    assert done.code == 0
    assert "damaged, writing it again" in done.err
    assert read_results(tmp_path / "run") == read_results(finished)


def test_preprocessing_of_the_user(ray_embed: Command, data: Path, tmp_path: Path) -> None:
    (tmp_path / "my_pixels.py").write_text("def prepare(images):\n    return images / 127.5 - 1\n")
    whole = ("--source", data / "whole", "--model", data / "epoch-2.onnx", *OPTIONS)
    done = ray_embed("run", *whole, "--out", "a", "--preprocess", "my_pixels:prepare")
    assert done.code == 0, done.err
    assert (tmp_path / "a" / "encoder" / "preprocessing.pb").exists()
    done = ray_embed("run", *whole, "--out", "b", "--scale", "symmetric")
    assert done.code == 0, done.err
    one, other = (np.stack(read_parts(tmp_path / out)["feature"].to_numpy()) for out in ("a", "b"))
    assert_features_equal(one, other)
    (tmp_path / "my_pixels.py").write_text("def prepare(images):\n    return images / 255\n")
    assert ray_embed("preview", *whole, "--preprocess", "my_pixels:prepare").code == 0


def test_what_the_graph_does_to_pixels_is_said(
    ray_embed: Command, data: Path, tmp_path: Path
) -> None:
    nodes = [helper.make_node("Div", ["images", "white"], ["scaled"]), *conv_nodes("scaled")]
    weights = random_weights() | {"white": np.float32(255)}
    path = save_onnx(tmp_path / "m.onnx", nodes, weights=weights)
    whole = ("--source", data / "whole", "--model", path, *OPTIONS)
    for command in (("run", "--out", "run"), ("preview",)):
        done = ray_embed(command[0], *whole, *command[1:])
        assert done.code == 0, done.err
        assert "encoder rescales its input itself (Div: × 1/255): pixels are given as 0–255" in (
            done.out + done.err
        )
    given = channels_first(pixels(data / "whole", SIDES))
    (expected,) = call_onnxruntime(path, given, VECTOR)
    assert_features_equal(np.stack(read_parts(tmp_path / "run")["feature"].to_numpy()), expected)


def test_a_model_of_single_images(ray_embed: Command, data: Path, tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", shape=(1, 3, *SIDES))
    whole = ("--source", data / "whole", "--model", path, "--out", "run", "--shard-size", 4)
    for _ in range(2):
        done = ray_embed("run", *whole)
        assert done.code == 0, done.err
    assert "takes batches of 1 images only" in done.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["batch_size"] == 1
    assert read_parts(tmp_path / "run").num_rows == 6


def test_a_sweep_over_files_of_two_frameworks(
    ray_embed: Command, data: Path, finished: Path, tmp_path: Path
) -> None:
    keras = save_encoder(tmp_path / "m.keras")
    done = ray_embed(
        "sweep", "--source", data / "images", "--model", data / "epoch-2.onnx",
        "--model", data / "epoch-10.onnx", "--model", keras, "--out", "runs", *OPTIONS,
    )  # fmt: skip
    assert done.code == 0, done.err
    runs = tmp_path / "runs"
    assert {path.name for path in runs.iterdir() if path.is_dir()} >= {"epoch-2", "epoch-10", "m"}
    assert read_results(runs / "epoch-2") == read_results(finished)
    assert read_results(runs / "epoch-10") != read_results(finished)
    assert pq.read_table(runs / "m" / "features").num_rows == 15


def test_weights_in_other_files_come_along_from_an_object_store(
    ray_embed_process: Command, bucket: str, data: Path, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "up").mkdir()
    for name in ("beside.onnx", "beside.bin"):
        shutil.copy(data / name, tmp_path / "up")
    fs.copy_files(str(tmp_path / "up"), f"{bucket}/models")
    model = f"{bucket}/models/beside.onnx"
    source = ("--source", data / "images", "--out", "run", *OPTIONS)
    done = ray_embed_process("run", "--model", model, *source)
    assert done.code == 0, done.err
    assert read_results(tmp_path / "run") == read_results(finished)
    store, folder = fs.FileSystem.from_uri(f"{bucket}/models")
    store.delete_file(f"{folder}/beside.bin")
    done = ray_embed_process("run", "--model", model, *source, "--overwrite")
    assert done.code == 2
    assert f"{bucket}/models/beside.bin" in done.err


def test_layers_of_a_file(command: Command, data: Path) -> None:
    done = command("layers", "--model", data / "epoch-2.onnx")
    assert done.code == 0, done.err
    assert f"{FIRST}\t(N, 6, 8, 10)" in done.out.splitlines()
    assert f"{VECTOR}\t(N, 8)" in done.out.splitlines()
    assert "2 tensors are not listed" in done.err
    assert "not listed" not in done.out


def test_a_random_baseline_is_refused(command: Command, finished: Path) -> None:
    done = command("evaluate", finished, "--random-weights")
    assert done.code == 2
    assert "--weights random" in done.err
    assert "does not say how its weights were initialized" in done.err
    assert "Traceback" not in done.err


def bad_model(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "bad.onnx"
    if kind == "garbage":
        path.write_bytes(b"no model")
        return path
    if kind == "custom":
        nodes = [helper.make_node("Twist", ["images"], ["y"], domain="org.example")]
        return save_onnx(path, nodes, ["y"], domains=["org.example"])
    if kind == "inputs":
        mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 1])
        nodes = [*conv_nodes(), helper.make_node("Mul", [VECTOR, "mask"], ["y"])]
        return save_onnx(path, nodes, ["y"], inputs=[mask])
    if kind == "external":
        save_onnx(path, external="w.bin")
        (tmp_path / "w.bin").unlink()
        return path
    if kind == "dynamic":
        return save_onnx(path, shape=("N", 3, None, None), metadata={"imgsz": "[320, 320]"})
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("garbage", "it is no ONNX model, or it is damaged"),
        ("custom", "Twist of the domain org.example"),
        ("inputs", "it has 2 inputs (images (?, 3, 16, 20), mask (?, 1))"),
        ("external", "w.bin, which holds weights of the model, is missing"),
        ("dynamic", "give --image-size H,W; its metadata says imgsz [320, 320]"),
        ("none", "no such file"),
    ],
)
def test_bad_files_end_with_one_message(
    ray_embed: Command, data: Path, tmp_path: Path, kind: str, said: str
) -> None:
    path = bad_model(tmp_path, kind)
    done = ray_embed("run", "--model", path, "--source", data / "whole", "--out", "run")
    assert done.code == 2
    assert f"--model {path}" in done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run" / "features").exists()
    assert "onnx2tf" not in done.err


def test_the_file_is_found_in_its_folder(command: Command, data: Path) -> None:
    done = command("run", "--model", data, "--source", data / "whole", "--out", "run")
    assert done.code == 2
    assert str(data / "beside.onnx") in done.err
