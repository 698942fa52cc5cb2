# SPDX-License-Identifier: Apache-2.0
"""Architectures of keras.applications by name: weights, pixels, and resuming without a network."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.applications import imagenet_utils
from support.command import Command
from support.encoders import BATCH, encode, gap, noise, spec
from support.features import assert_features_equal
from support.named_models import make_pictures

import ray_embed
from ray_embed.core.model_names import APPLICATIONS
from ray_embed.encoders.build import build
from ray_embed.encoders.model_loading import load_model
from ray_embed.errors import InputError
from ray_embed.runs.workspace import choose_default_out

# The smallest input of keras.applications, and a network that takes it.
SIZE = 32
NAME = "keras:MobileNetV2"
FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
OPTIONS = ("--image-size", SIZE, "--shard-size", 4)
PREPROCESSED = "given as 0–255 to keras.applications.mobilenet_v2:preprocess_input"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return Keras's folder of downloaded weights, which is empty; there is no network."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    folder = Path.home() / ".keras" / "models"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def network(cache: Path) -> Any:
    """Return a network with weights that no other test has, in the place of the published ones."""
    keras.utils.set_random_seed(7)
    made = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(SIZE, SIZE, 3)
    )
    # Published weights are in the old format of HDF5, as those in a whole model are.
    made.save(cache / FILE)
    return made


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "application",
    # MobileNetV3 takes any size, and was trained on this one.
    [each for each in APPLICATIONS if each.module != "mobilenet_v3"],
    ids=lambda each: each.name,
)
def test_every_architecture_is_in_keras_with_its_size(
    application: Any, monkeypatch: pytest.MonkeyPatch
):
    class Found(Exception):  # noqa: N818 - it only ends the call
        pass

    def stop(shape: Any, default_size: int, *_: Any, **__: Any) -> None:
        raise Found(default_size)

    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", stop)
    function = getattr(keras.applications, application.name)
    defined = sys.modules[function.__module__].preprocess_input
    assert getattr(keras.applications, application.module).preprocess_input is defined
    with pytest.raises(Found) as found:
        function(weights=None)
    assert found.value.args == (application.size,)


def test_every_architecture_of_keras_has_a_name():
    known = {each.name for each in APPLICATIONS}
    found = {name for name, value in vars(keras.applications).items() if callable(value)}
    assert found == known


@pytest.mark.parametrize(
    "given", ["keras:mobilenet_v2", "keras:MobileNetV2", "keras:MOBILENETV2", "keras:mobilenetv2"]
)
def test_module_and_class_in_any_case(given: str):
    assert ray_embed.RunConfig(sources={"a": "b"}, model=given).model == NAME


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("keras:mobilenetv5", ("did you mean keras:MobileNetV2",)),
        ("keras:zzz", ("it has keras:ConvNeXtTiny", "keras:Xception")),
        ("keras:efficientnet", ("keras:EfficientNetB0", "keras:EfficientNetB7")),
    ],
)
def test_unknown_name(command: Command, given: str, said: tuple[str, ...]):
    done = command("run", "--model", given, "--source", "nowhere")
    assert done.code == 2
    for part in (given, *said):
        assert part in done.err


def test_default_run_folders():
    for model, folder in (
        ("keras:mobilenet_v2", "runs/MobileNetV2"),
        ("keras_hub:vit_base", "runs/vit_base"),
        ("keras_hub:hf://someone/vit", "runs/vit"),
    ):
        assert choose_default_out(ray_embed.RunConfig(sources={"a": "b"}, model=model)) == folder


# --- weights -------------------------------------------------------------------------------------


def test_published_weights_from_the_cache(network: Any):
    images = noise(shape=(SIZE, SIZE, 3)) * 255
    encoder = build(spec(NAME, image_size=(SIZE, SIZE)))
    wanted = gap(np.asarray(network(keras.applications.mobilenet_v2.preprocess_input(images * 1))))
    (features,) = encode(encoder, images)
    assert_features_equal(features, wanted)
    assert "MobileNetV2 of keras.applications without its classifier" in encoder.notes[0]
    assert "ImageNet" in encoder.notes[0]


def test_no_network_says_which_file_to_put_where(command: Command, cache: Path, tmp_path: Path):
    make_pictures(tmp_path)
    done = command("preview", "--model", NAME, "--source", "pictures")
    assert done.code == 2
    assert str(cache / FILE) in done.err
    assert f"mobilenet_v2/{FILE}" in done.err
    assert "Traceback" not in done.err


def test_same_digests_as_a_file_of_the_same_network(network: Any, tmp_path: Path):
    network.save(tmp_path / "network.keras")
    network.save_weights(tmp_path / "network.weights.h5")
    named = build(spec(NAME, image_size=(SIZE, SIZE)))
    weights = str(tmp_path / "network.weights.h5")
    filled = build(spec(NAME, image_size=(SIZE, SIZE), weights=weights))
    preprocess = "keras.applications.mobilenet_v2:preprocess_input"
    file = build(spec(tmp_path / "network.keras", preprocess=preprocess))
    for other in (filled, file):
        assert other.architecture == named.architecture
        assert other.weights_digest == named.weights_digest


def test_arguments_of_the_architecture():
    encoder = build(
        spec(NAME, image_size=(SIZE, SIZE), weights="random", model_kwargs={"alpha": 0.35})
    )
    assert encoder.outputs[0].dimension == 1280
    with pytest.raises(InputError, match=r"alpha.*--model-kwargs"):
        build(spec(NAME, weights="random", model_kwargs={"alpha": "wide"}))


def test_image_size_of_the_architecture():
    assert load_model(spec("keras:EfficientNetB1", weights="random")).input_shape == (240, 240, 3)


# --- runs ----------------------------------------------------------------------------------------


def test_resuming_without_network_and_cache(
    ray_embed: Command, network: Any, cache: Path, tmp_path: Path
):
    make_pictures(tmp_path, 8)
    # What cannot be folded is called as it is, by actors that build the network again.
    (tmp_path / "in_python.py").write_text(
        "import tensorflow as tf\n"
        "def prepare(images):\n"
        "    pixels = tf.numpy_function(lambda x: x / 127.5 - 1, [images], tf.float32)\n"
        "    return tf.ensure_shape(pixels, images.shape)\n"
    )
    arguments = (
        "run", "--model", NAME, "--source", "pictures", "--out", "run",
        "--preprocess", "in_python:prepare", *OPTIONS,
    )  # fmt: skip
    done = ray_embed(*arguments)
    assert done.code == 0, done.err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["encoder"]["engine"] in ("function", "plain")
    parts = sorted((tmp_path / "run" / "features").iterdir())
    before = [part.read_bytes() for part in parts]
    parts[-1].unlink()
    shutil.rmtree(cache)
    done = ray_embed(*arguments)
    assert done.code == 0, done.err
    assert [part.read_bytes() for part in parts] == before
    assert not cache.exists()
    # Not the same run.
    done = ray_embed(*arguments[:-4], "--image-size", 64)
    assert done.code == 2, done.err


def test_pixels_are_said_and_recorded(ray_embed: Command, tmp_path: Path):
    make_pictures(tmp_path)
    done = ray_embed(
        "run", "--model", "keras:mobilenetv2", "--source", "pictures", "--weights", "random",
        "--out", "run", *OPTIONS,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert f"{PREPROCESSED}, as {NAME} expects" in done.err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    preprocess = "keras.applications.mobilenet_v2:preprocess_input"
    assert run["config"]["preprocess"] == run["identity"]["preprocess"] == preprocess
    assert run["model"] == NAME
    done = ray_embed("evaluate", "run", "--random-weights")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "random-weights" / "features").is_dir()


def test_pixel_options_of_the_user_win(ray_embed: Command, tmp_path: Path):
    make_pictures(tmp_path)
    done = ray_embed(
        "run", "--model", NAME, "--source", "pictures", "--weights", "random", "--out", "run",
        "--scale", "symmetric", *OPTIONS,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "scaled to [-1, 1]" in done.err
    assert "--scale symmetric is used instead of --preprocess keras.applications" in done.err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["identity"]["preprocess"] is None
    assert run["config"]["preprocess"] is None
    # The values are the same, because this network takes pixels from -1 to 1.
    again = ray_embed(
        "run", "--model", NAME, "--source", "pictures", "--weights", "random", "--out", "other",
        *OPTIONS,
    )  # fmt: skip
    assert again.code == 0, again.err
    one, other = (load_features(tmp_path / name) for name in ("run", "other"))
    assert_features_equal(one, other)


def load_features(run: Path) -> np.ndarray:
    """Return the features of a run."""
    return ray_embed.load(run).to_numpy()[0]


def test_float_arrays_from_zero_to_one_cause_a_warning(ray_embed: Command, tmp_path: Path):
    np.savez(tmp_path / "a.npz", images=noise(BATCH, (SIZE, SIZE, 3)), labels=np.arange(BATCH))
    done = ray_embed(
        "run", "--model", NAME, "--source", "a.npz", "--weights", "random", "--out", "run",
        "--image-size", SIZE,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "like pixels from 0 to 255; multiply them by 255" in done.err


def test_sweep_over_names(ray_embed: Command, tmp_path: Path):
    make_pictures(tmp_path)
    done = ray_embed(
        "sweep", "--model", "keras:mobilenetv2", "--model", "keras:MobileNetV3Small", "--weights",
        "random", "--source", "pictures", "--out", "swept", *OPTIONS,
    )  # fmt: skip
    assert done.code == 0, done.err
    used = {
        path.parent.name: json.loads(path.read_text())["config"]["preprocess"]
        for path in (tmp_path / "swept").glob("*/run.json")
    }
    assert used == {
        "mobilenetv2": "keras.applications.mobilenet_v2:preprocess_input",
        "MobileNetV3Small": "keras.applications.mobilenet_v3:preprocess_input",
    }


def test_layers_and_preview_without_weights(command: Command, cache: Path, tmp_path: Path):
    make_pictures(tmp_path)
    done = command("layers", "--model", NAME)
    assert done.code == 0, done.err
    assert "out_relu\t(N, 7, 7, 1280)" in done.out.replace("  ", "\t")
    done = command(
        "preview", "--model", NAME, "--weights", "random", "--source", "pictures", "--image-size",
        SIZE,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert PREPROCESSED in done.err + done.out


def test_names_in_yaml_keep_their_meaning(tmp_path: Path):
    from ray_embed.config import load_yaml

    (tmp_path / "run.yaml").write_text(f"model: {NAME}\n")
    assert load_yaml(str(tmp_path / "run.yaml"))["model"] == NAME
