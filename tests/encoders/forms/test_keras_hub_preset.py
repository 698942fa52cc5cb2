# SPDX-License-Identifier: Apache-2.0
"""Presets of KerasHub: the backbone, and the pixels of the preset's ImageConverter."""

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support.command import Command
from support.encoders import BATCH, encode, gap, noise, spec
from support.features import assert_features_equal
from support.named_models import make_pictures

import ray_embed
from ray_embed.encoders.build import build
from ray_embed.errors import InputError
from ray_embed.storage.filesystem import Folder

keras_hub = pytest.importorskip("keras_hub", reason="needs the extra `hub`")

SCALE = [1 / 255 / deviation for deviation in (0.229, 0.224, 0.225)]
OFFSET = [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
VALUES = "scaled to [0, 1], normalized by mean 0.485,0.456,0.406 and std 0.229,0.224,0.225"
OPTIONS = ("--source", "pictures", "--out", "run", "--shard-size", 4)


def make_backbone() -> Any:
    """Make a small ResNet for images of any size."""
    keras.utils.set_random_seed(3)
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(None, None, 3),
    )


def make_converter(**changes: Any) -> Any:
    """Make a converter of pixels as most presets have."""
    settings = {
        "image_size": (32, 40),
        "scale": SCALE,
        "offset": OFFSET,
        "interpolation": "bicubic",
    }
    return keras_hub.layers.ResNetImageConverter(**(settings | changes))


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    """Save a preset, and pictures beside it."""
    make_pictures(tmp_path, 8)
    make_backbone().save_to_preset(str(tmp_path / "preset"))
    make_converter().save_to_preset(str(tmp_path / "preset"))
    return tmp_path / "preset"


def read_run(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run" / "run.json").read_text())
    return content


# --- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialias", [False, True])
def test_features_equal_those_of_converter_and_backbone(
    ray_embed: Command, preset: Path, antialias: bool
):
    make_converter(antialias=antialias).save_to_preset(str(preset))
    done = ray_embed("run", "--model", "preset", *OPTIONS)
    assert done.code == 0, done.err
    converter = keras_hub.layers.ImageConverter.from_preset(str(preset))
    backbone = keras_hub.models.Backbone.from_preset(str(preset))
    files = sorted((preset.parent / "pictures").glob("*/*.png"))
    images = [keras.utils.img_to_array(keras.utils.load_img(file)) for file in files]
    pixels = np.concatenate([np.asarray(converter(image[None])) for image in images])
    wanted = gap(np.asarray(backbone(pixels, training=False)))
    features = load_features(preset.parent)
    if antialias:
        # Antialiased pixels are rounded to whole levels, as in Pillow.
        assert np.abs(features - wanted).max() < 0.05 * np.abs(wanted).max()
    else:
        assert_features_equal(features, wanted)


def load_features(folder: Path) -> np.ndarray:
    """Return the features of the run in a folder."""
    return ray_embed.load(folder / "run").to_numpy()[0]


def test_pixels_are_said_and_recorded(ray_embed: Command, preset: Path):
    done = ray_embed("run", "--model", "preset", *OPTIONS)
    assert done.code == 0, done.err
    assert f"32×40 (crop, bicubic), {VALUES}, as " in done.err
    config = read_run(preset.parent)["config"]
    named = {name: config[name] for name in ("scale", "mean", "std", "resize", "interpolation")}
    assert named == {
        "scale": "unit",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "resize": "crop",
        "interpolation": "bicubic",
    }
    done = ray_embed("evaluate", "run", "--random-weights")
    assert done.code == 0, done.err
    done = ray_embed("preview", "--model", "preset", "--source", "pictures")
    assert done.code == 0, done.err
    assert VALUES in done.err + done.out


def test_pixel_options_of_the_user_win(ray_embed: Command, preset: Path):
    done = ray_embed(
        "run", "--model", "keras_hub:preset", "--scale", "symmetric", "--resize", "pad", *OPTIONS
    )
    assert done.code == 0, done.err
    assert "32×40 (pad, bicubic), scaled to [-1, 1]" in done.err
    assert "--scale symmetric is used instead of --scale unit --mean 0.485,0.456" in done.err
    assert "--resize pad is used instead of --resize crop" in done.err
    assert read_run(preset.parent)["config"]["mean"] == []


def test_image_size_of_the_user(preset: Path):
    assert build(spec(preset)).image_shape == (32, 40, 3)
    assert build(spec(preset, image_size=(24, 24))).image_shape == (24, 24, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop_to_aspect_ratio": False, "pad_to_aspect_ratio": True}, "give --resize"),
        ({"scale": -1.0}, "factors must be positive"),
    ],
)
def test_converter_that_no_option_can_express(preset: Path, changes: Any, said: str):
    make_converter(**changes).save_to_preset(str(preset))
    with pytest.raises(InputError, match=f"ResNetImageConverter.*{said}"):
        build(spec(preset))
    given = ("resize",) if "scale" not in changes else ("scale",)
    assert build(spec(preset, pixel_options=given)).image_shape == (32, 40, 3)


def test_converter_with_code_of_its_own(preset: Path, monkeypatch: pytest.MonkeyPatch):
    converter = keras_hub.layers.ResNetImageConverter
    monkeypatch.setattr(converter, "call", lambda self, inputs: inputs, raising=False)
    with pytest.raises(InputError, match=r"in its own way \(call\)"):
        build(spec(preset))


def test_preset_without_converter(ray_embed: Command, preset: Path):
    (preset / "image_converter.json").unlink()
    done = ray_embed("run", "--model", "preset", "--image-size", 32, *OPTIONS)
    assert done.code == 0, done.err
    assert "has no ImageConverter, so the default preprocessing is used" in done.err


# --- models --------------------------------------------------------------------------------------


def test_model_with_a_fixed_size(tmp_path: Path):
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    backbone.save_to_preset(str(tmp_path))
    keras_hub.layers.ViTImageConverter(
        image_size=(32, 32), scale=1 / 127.5, offset=-1
    ).save_to_preset(str(tmp_path))
    images = noise(BATCH, (32, 32, 3))
    encoder = build(spec(tmp_path, pool="cls"))
    (features,) = encode(encoder, images)
    assert_features_equal(features, np.asarray(backbone(images, training=False))[:, 0])
    assert encoder.spec.kept.pixels["scale"] == "symmetric"
    assert not encoder.spec.kept.pixels["mean"]


def test_preset_in_an_object_store(command: Command, preset: Path, bucket: str):
    for file in preset.iterdir():
        Folder.open(f"{bucket}/preset").write(file.name, file.read_bytes())
    done = command("preview", "--model", f"keras_hub:{bucket}/preset", "--source", "pictures")
    assert done.code == 0, done.err
    assert f"{VALUES}, as {bucket}/preset expects" in done.err + done.out


def test_model_of_text(tmp_path: Path):
    keras_hub.models.BertBackbone(
        vocabulary_size=9, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4
    ).save_to_preset(str(tmp_path))
    with pytest.raises(InputError, match=r"several inputs.*one batch of images"):
        build(spec(tmp_path))


def test_same_digests_as_a_file_of_the_same_network(preset: Path):
    keras_hub.models.Backbone.from_preset(str(preset)).save(preset.parent / "model.keras")
    named = build(spec(preset))
    file = build(spec(preset.parent / "model.keras", image_size=(32, 40), imports=("keras_hub",)))
    assert file.architecture == named.architecture
    assert file.weights_digest == named.weights_digest


def test_layers(command: Command, preset: Path):
    done = command("layers", "--model", "keras_hub:preset")
    assert done.code == 0, done.err
    assert "pool1_pool" in done.out


# --- names ---------------------------------------------------------------------------------------


def test_unknown_preset(command: Command, preset: Path):
    done = command("preview", "--model", "keras_hub:resnet_50_imagnet", "--source", "pictures")
    assert done.code == 2
    assert "keras_hub:resnet_50_imagenet" in done.err
    assert "Traceback" not in done.err


def test_no_network(command: Command, preset: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    done = command("preview", "--model", "keras_hub:resnet_50_imagenet", "--source", "pictures")
    assert done.code == 2
    assert "save_to_preset(FOLDER)" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_resuming_a_named_preset_without_hub(ray_embed: Command, preset: Path, engine: str):
    # KerasHub looks up a name, and finds its files.
    (preset.parent / "my_presets.py").write_text(
        "import keras_hub, tensorflow as tf\n"
        "from keras_hub.src.utils.preset_utils import register_presets\n"
        f"presets = {{'small_resnet': {{'kaggle_handle': {str(preset)!r}}}}}\n"
        "register_presets(presets, keras_hub.models.ResNetBackbone)\n"
        "def prepare(images):\n"
        "    pixels = tf.numpy_function(lambda x: x / 255, [images], tf.float32)\n"
        "    return tf.ensure_shape(pixels, images.shape)\n"
    )
    options = ["--model", "keras_hub:small_resnet", "--import", "my_presets", *OPTIONS]
    if engine == "plain":
        # What cannot be folded is called as it is, by actors that build the network again.
        options += ["--preprocess", "my_presets:prepare"]
    done = ray_embed("run", *options)
    assert done.code == 0, done.err
    used = read_run(preset.parent)["encoder"]["engine"]
    assert (used in ("function", "plain")) == (engine == "plain")
    parts = sorted((preset.parent / "run" / "features").iterdir())
    before = [part.read_bytes() for part in parts]
    parts[-1].unlink()
    shutil.rmtree(preset)
    done = ray_embed("run", *options)
    assert done.code == 0, done.err
    assert [part.read_bytes() for part in parts] == before


def test_extra_is_missing(command: Command, preset: Path, monkeypatch: pytest.MonkeyPatch):
    from ray_embed.encoders import keras_hub_import, unsupported_formats

    for module in (keras_hub_import, unsupported_formats):
        monkeypatch.setattr(module, "is_keras_hub_installed", lambda: False)
    for model in ("preset", "keras_hub:resnet_50_imagenet"):
        done = command("preview", "--model", model, "--source", "pictures")
        assert done.code == 2
        assert "pip install 'ray_embed[hub]'" in done.err


def test_lambda_in_a_preset_does_not_run(tmp_path: Path):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x / 0)])
    (tmp_path / "config.json").write_text(json.dumps(keras.saving.serialize_keras_object(model)))
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(InputError, match="KerasHub cannot load it"):
        build(spec(tmp_path))
