# SPDX-License-Identifier: Apache-2.0
"""One network as a PyTorch module, an exported program, two ONNX files, and a Keras file."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Command
from support.encoders import PROJECT, compute_features, noise, pixels
from support.features import assert_features_equal
from support.pictures import make_folder
from support.sample_runs import part_files, read_parts, read_results

import ray_embed as package
from ray_embed import RunConfig

torch = pytest.importorskip("torch", reason="PyTorch is large: pip install torch")

import my_torch  # noqa: E402

SIDES = (16, 20)
BATCH = 4
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.25, 0.3)
MODELS = {
    "module": "my_torch:padded",
    "program": "encoder.pt2",
    "torch_onnx": "encoder.onnx",
    "keras_onnx": "from_keras.onnx",
    "keras": "encoder.keras",
}
# Keras writes ONNX files with the exporter of its backend.
EXPORT = """
import sys
import keras
model = keras.saving.load_model(sys.argv[1])
model(keras.ops.zeros((1, *model.input_shape[1:])))
model.export(sys.argv[2], format="onnx", verbose=False)
"""


def save_program(module: Any, path: Path) -> None:
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    example = (torch.zeros(BATCH, 3, *SIDES),)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=batch), path)


def save_onnx(module: Any, path: Path) -> None:
    with warnings.catch_warnings():
        # PyTorch advises the other exporter, which needs another package.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(BATCH, 3, *SIDES),), path, input_names=["images"],
            output_names=["features"], dynamic_axes={"images": {0: "N"}}, dynamo=False,
        )  # fmt: skip


def save_keras(module: Any, path: Path) -> None:
    """Write the same layers with the same weights, whose channels are last."""
    import keras

    model = keras.Sequential([
        keras.Input((*SIDES, 3)),
        keras.layers.ZeroPadding2D(1),
        keras.layers.Conv2D(6, 3, strides=2),
        keras.layers.BatchNormalization(epsilon=module.norm.eps),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(2),
        keras.layers.Conv2D(10, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(8),
    ])  # fmt: skip
    values = {name: value.numpy() for name, value in module.state_dict().items()}
    model.set_weights([
        values["first.weight"].transpose(2, 3, 1, 0), values["first.bias"],
        values["norm.weight"], values["norm.bias"],
        values["norm.running_mean"], values["norm.running_var"],
        values["maps.weight"].transpose(2, 3, 1, 0), values["maps.bias"],
        values["head.weight"].T, values["head.bias"],
    ])  # fmt: skip
    model.save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images, and the network in all forms."""
    root = tmp_path_factory.mktemp("forms")
    make_folder(root / "images", {"cat": 5, "dog": 4})
    shutil.copy(PROJECT / "my_torch.py", root)
    module = my_torch.padded().eval()
    save_program(module, root / MODELS["program"])
    save_onnx(module, root / MODELS["torch_onnx"])
    save_keras(module, root / MODELS["keras"])
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, MODELS["keras"], MODELS["keras_onnx"]],
        cwd=root, env={**os.environ, "KERAS_BACKEND": "torch"}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def runs(ray_session: None, data: Path) -> dict[str, Path]:
    """Embed the images with each form."""
    with contextlib.chdir(data):
        for form, model in MODELS.items():
            package.run(
                RunConfig(
                    sources={"images": "images"}, model=model, out=form, image_size=SIDES,
                    mean=MEAN, std=STD, shard_size=5, batch_size=BATCH, cpus_per_actor=1, actors=1,
                )
            )  # fmt: skip
    return {form: data / form for form in MODELS}


def read_features(run: Path) -> np.ndarray:
    features, _ = package.load(run).to_numpy()
    return features


def read_manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def test_all_forms_have_the_features_of_the_module(data: Path, runs: dict[str, Path]) -> None:
    images = (pixels(data / "images", SIDES) / 255 - np.float32(MEAN)) / np.float32(STD)
    with torch.inference_mode():
        given = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)
        expected = my_torch.padded().eval()(given).numpy()
    for form in MODELS:
        assert_features_equal(read_features(runs[form]), expected)


@pytest.mark.parametrize(("form", "other"), itertools.combinations(MODELS, 2))
def test_forms_have_the_same_features(runs: dict[str, Path], form: str, other: str) -> None:
    assert_features_equal(read_features(runs[form]), read_features(runs[other]))


def test_forms_have_the_same_features_in_their_own_frameworks(data: Path) -> None:
    images = noise(BATCH, (*SIDES, 3))
    found = [
        compute_features(data / model, images, engine=engine, image_size=SIDES)
        for model, engine in (
            (MODELS["program"], "torch"),
            (MODELS["torch_onnx"], "onnxruntime"),
            (MODELS["keras_onnx"], "onnxruntime"),
            (MODELS["keras"], "tensorflow"),
        )
    ]
    for features, others in itertools.combinations(found, 2):
        assert_features_equal(features, others)


def test_forms_of_different_frameworks_are_different_encoders(runs: dict[str, Path]) -> None:
    manifests = {form: read_manifest(run) for form, run in runs.items() if form != "program"}
    assert len({manifest["fingerprint"] for manifest in manifests.values()}) == len(manifests)
    for name in ("model architecture", "model weights"):
        assert len({each["identity"][name] for each in manifests.values()}) == len(manifests)


def test_a_module_and_its_program_are_the_same_encoder(runs: dict[str, Path]) -> None:
    # Both become a program, and names in it do not count.
    module, program = runs["module"], runs["program"]
    assert read_manifest(module)["fingerprint"] == read_manifest(program)["fingerprint"]
    assert read_results(module) == read_results(program)


def test_a_file_under_another_name_is_the_same_encoder(
    ray_embed: Command, data: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(data / "images", tmp_path / "images")
    shutil.copytree(runs["torch_onnx"], tmp_path / "run")
    shutil.copy(data / MODELS["torch_onnx"], tmp_path / "renamed.onnx")
    part_files(tmp_path / "run")[1].unlink()
    options: tuple[Any, ...] = (
        "--image-size", "16,20", "--mean", ",".join(map(str, MEAN)),
        "--std", ",".join(map(str, STD)), "--shard-size", 5, "--batch-size", BATCH,
        "--cpus-per-actor", 1,
    )  # fmt: skip
    words = ("--source", "images", "--out", "run", *options)
    done = ray_embed("run", "--model", "renamed.onnx", *words)
    assert done.code == 0, done.err
    assert len(read_parts(tmp_path / "run")) == 9
    assert read_results(tmp_path / "run") == read_results(runs["torch_onnx"])
    # The features are nearly the same, but not their bytes.
    shutil.copy(data / MODELS["keras_onnx"], tmp_path)
    done = ray_embed("run", "--model", MODELS["keras_onnx"], *words)
    assert done.code == 2
    assert "model architecture: was" in done.err
