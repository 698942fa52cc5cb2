# SPDX-License-Identifier: Apache-2.0
"""Encoders of timm by name: timm's own features, and the pixels of timm's own transform."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.command import Command
from support.encoders import build_alone, encode, noise, spec
from support.features import assert_features_equal
from support.named_models import check_goes_on, make_pictures, write_photos
from support.prepared import pixels_of

import ray_embed as ray_embed_package
from ray_embed.encoders.build import build
from ray_embed.encoders.engines.openvino import is_openvino_installed
from ray_embed.encoders.layer_shapes import list_shapes
from ray_embed.encoders.torch_models.libraries.registry import find_library
from ray_embed.errors import InputError

torch = pytest.importorskip("torch", reason="PyTorch is large: pip install torch")
timm = pytest.importorskip("timm", reason="needs the extra `timm`")

SMALL = "timm:test_resnet"
SEED = 0
ENGINES = [
    pytest.param(
        "openvino", marks=pytest.mark.skipif(not is_openvino_installed(), reason="no OpenVINO")
    ),
    "torch",
]


def make_random(name: str, **options: Any) -> Any:
    """Make the model that `--weights random` makes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return timm.create_model(name.removeprefix("timm:"), num_classes=0, **options).eval()


def make_spec(name: str = SMALL, **options: Any) -> Any:
    return spec(name, **{"weights": "random", "engine": "torch", **options})


def call(function: Any, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return function(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def refuse(name: str, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        build(make_spec(name, **options))
    return str(refused.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a model and its configuration with timm, and pictures beside it."""
    make_pictures(tmp_path, 8)
    model = make_random(SMALL)
    timm.models.save_for_hf(model, tmp_path / "trained")
    change_config(tmp_path / "trained", crop_pct=0.9, mean=[0.5, 0.4, 0.3], interpolation="bicubic")
    return tmp_path / "trained"


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content["pretrained_cfg"] |= changes
    file.write_text(json.dumps(content))


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet", "test_nfnet"],
)
def test_features_are_those_of_the_model_without_its_classifier(name: str, engine: str):
    encoder = build(make_spec(f"timm:{name}", engine=engine))
    assert encoder.engine == engine
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    assert_features_equal(features, call(make_random(name), images))


def test_building_needs_no_tensorflow():
    packages = build_alone(SMALL, weights="random")
    assert "timm" in packages
    assert "tensorflow" not in packages


@pytest.mark.parametrize(
    ("pool", "take"), [("cls", lambda tokens: tokens[:, 0]), ("gap", lambda tokens: tokens.mean(1))]
)
def test_tokens_are_a_layer(pool: str, take: Any):
    encoder = build(make_spec("timm:test_vit", layers=("forward_features",), pool=pool))
    images = noise(4, encoder.image_shape)
    tokens = call(make_random("test_vit").forward_features, images)
    (features,) = encode(encoder, images)
    assert_features_equal(features, take(tokens))


def test_layers_and_outputs_are_listed_without_weights():
    _, layers = list_shapes(make_spec("timm:test_vit", weights=None))
    assert layers["pooled"] == (None, 64)
    assert layers["forward_features"] == layers["norm"]
    assert layers["blocks.0"] == layers["norm"]
    assert "output" not in layers


def test_several_layers_and_outputs():
    encoder = build(make_spec("timm:test_vit", layers=("pooled", "blocks.0"), pool=None))
    images = noise(4, encoder.image_shape)
    pooled, block = encode(encoder, images)
    model, found = make_random("test_vit"), []
    model.blocks[0].register_forward_hook(lambda *hooked: found.append(hooked[2]))
    assert_features_equal(pooled, call(model, images))
    assert_features_equal(block, found[0].numpy().mean(1))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_image_size(name: str):
    size = (64, 96)
    encoder = build(make_spec(f"timm:{name}", image_size=size))
    assert encoder.image_shape == (*size, 3)
    model = make_random(name, **({"img_size": size} if name == "test_vit" else {}))
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    assert_features_equal(features, call(model, images))


# --- pixels --------------------------------------------------------------------------------------


def write_pictures(folder: Path) -> list[Path]:
    """Write photos, and noise, which shows how JPEG files are decoded."""
    path = folder / "noise.jpg"
    noise = np.random.default_rng(2).integers(0, 256, (240, 320, 3), np.uint8)
    Image.fromarray(noise).save(path, quality=90)
    return [*write_photos(folder), path]


@pytest.mark.parametrize(
    "name",
    ["resnet18.a1_in1k", "vit_tiny_patch16_224", "mobilenetv3_small_100", "tf_efficientnet_b0",
     "vit_base_patch16_clip_224.openai", "vit_small_patch14_dinov2", "inception_v3",
     "vit_base_patch16_siglip_224"],
)  # fmt: skip
def test_pixels_are_those_of_the_transform(tmp_path: Path, name: str):
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    size = config["input_size"][1:]
    transform = timm.data.create_transform(**config, is_training=False)
    options = find_options(name)
    shape = (*size, 3)
    for path in write_pictures(tmp_path):
        found = pixels_of(path, shape, is_jpeg_accurate=True, **options)
        expected = transform(Image.open(path)).permute(1, 2, 0).numpy()
        levels = np.abs(found - expected) * np.asarray(config["std"], np.float32) * 255
        assert levels.max() < 1e-3


def find_options(name: str) -> dict[str, Any]:
    """Return the pixel options of a model of timm, which is made without memory."""
    library, _ = find_library(f"timm:{name}") or (None, None)
    assert library is not None
    with torch.device("meta"):
        named = library.load(make_spec(f"timm:{name}"), name, False)
    assert named.image_size is not None
    return {key: value or ("stretch" if key == "resize" else value)
            for key, value in named.pixels.items()}  # fmt: skip


def test_options_are_adopted_printed_and_recorded(ray_embed: Command, folder: Path):
    photo = folder.parent / "pictures" / "a" / "photo.jpg"
    Image.fromarray(np.uint8(noise(1, (240, 320, 3))[0] * 255)).save(photo)
    done = ray_embed("run", "--model", "trained", "--source", "pictures", "--out", "run")
    assert done.code == 0, done.err
    assert "JPEG files decoded accurately, as Pillow does" in done.err
    assert (
        "pixels: RGB files, 160×160 (center crop after resizing, bicubic, antialiased), scaled to "
        "[0, 1], normalized by mean 0.5,0.4,0.3 and std 0.5, as "
    ) in done.err
    record = json.loads((folder.parent / "run" / "run.json").read_text())
    config = record["config"]
    assert (config["crop_fraction"], config["interpolation"], config["antialias"]) == (
        0.9, "bicubic", True,
    )  # fmt: skip
    assert record["identity"]["crop fraction"] == 0.9
    assert "crop corner" not in record["identity"], "runs of earlier versions do not have it"
    features, _ = ray_embed_package.load(folder.parent / "run").to_numpy()
    transform = timm.data.create_transform(
        input_size=(3, 160, 160), mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5),
        interpolation="bicubic", crop_pct=0.9, is_training=False,
    )  # fmt: skip
    paths = sorted((folder.parent / "pictures").rglob("*.*g"))
    images = torch.stack([transform(Image.open(path)) for path in paths])
    with torch.inference_mode():
        expected = make_random(SMALL)(images).numpy()
    assert_features_equal(features, expected)


# --- the run folder ------------------------------------------------------------------------------


def test_a_run_goes_on_without_the_model(ray_embed: Command, folder: Path):
    options = ("--source", "pictures", "--shard-size", 4, "--out", "run")
    assert ray_embed("run", "--model", "timm:trained", *options).code == 0
    shutil.rmtree(folder)
    check_goes_on(folder.parent / "run", lambda: ray_embed("run", "--model", "trained", *options))


def test_a_named_run_goes_on_without_timm(
    ray_embed: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = (
        "run", "--model", SMALL, "--weights", "random", "--source", "pictures", "--out", "run",
        "--shard-size", 4,
    )  # fmt: skip
    assert ray_embed(*arguments).code == 0
    hide = folder.parent / "hidden"
    (hide / "timm").mkdir(parents=True)
    (hide / "timm" / "__init__.py").write_text("raise ImportError('timm is hidden')")
    monkeypatch.setenv("PYTHONPATH", str(hide))
    check_goes_on(folder.parent / "run", lambda: ray_embed(*arguments))


def test_weights_from_a_file(tmp_path: Path):
    torch.manual_seed(5)
    model = timm.create_model("test_resnet", num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "epoch.pt")
    encoder = build(make_spec(weights=str(tmp_path / "epoch.pt")))
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    assert_features_equal(features, call(model, images))


# --- bad input -----------------------------------------------------------------------------------


def test_unknown_names_and_tags():
    assert "did you mean timm:" in refuse("timm:resnet10x")
    message = refuse("timm:resnet18.imaginary")
    assert "timm has no weights 'imaginary' of resnet18; it has a1_in1k" in message


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refuse("timm:resnet18.a1_in1k", weights=None)
    assert message.startswith("--model timm:resnet18.a1_in1k: its files cannot be downloaded from ")
    assert "https://huggingface.co/timm/resnet18.a1_in1k/" in message
    assert "timm.models.save_for_hf(model, FOLDER)" in message


def test_transforms_that_no_option_can_express(folder: Path):
    for changed, part in (
        ({"crop_mode": "border"}, "crops images in the mode 'border', which no option can express"),
        ({"crop_mode": "squash", "crop_pct": 0.9}, "stretches images and keeps 0.9 of them"),
        ({"interpolation": "hamming"}, "resizes images with 'hamming' interpolation"),
    ):
        change_config(folder, **changed)
        assert part in refuse(str(folder))
        build(make_spec(str(folder), pixel_options=("resize", "interpolation")))


def test_timm_is_missing(monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "timm" else find(name)
    )
    message = refuse(SMALL)
    assert message == (
        "--model timm:test_resnet: its library is not installed; pip install 'ray_embed[timm]'"
    )


def test_options_of_other_forms():
    assert "the option is for SavedModel folders" in refuse(SMALL, tags=("serve",))
    assert "it has no module called 'nothing'" in refuse(SMALL, submodel="nothing")
    assert "timm cannot create it with" in refuse(SMALL, model_kwargs={"no_such": 1})
