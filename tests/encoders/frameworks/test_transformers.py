# SPDX-License-Identifier: Apache-2.0
"""Encoders of transformers: their own features, and the pixels of their own image processors."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.command import Command
from support.encoders import encode, noise, spec
from support.features import assert_features_equal
from support.named_models import check_goes_on, make_pictures

import ray_embed as ray_embed_package
from ray_embed.encoders.build import build
from ray_embed.encoders.engines.openvino import is_openvino_installed
from ray_embed.encoders.layer_shapes import list_shapes
from ray_embed.encoders.spec import Encoder
from ray_embed.encoders.torch_models.libraries.registry import find_library
from ray_embed.errors import InputError

torch = pytest.importorskip("torch", reason="PyTorch is large: pip install torch")
transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")

SIDE = 32
TOKENS = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": SIDE, "patch_size": 8,
}  # fmt: skip
TOWERS = {"vision_config": TOKENS, "text_config": TOKENS | {"vocab_size": 20, "projection_dim": 8}}
# Configurations by the name of their class, with tiny networks.
MODELS: dict[str, dict[str, Any]] = {
    "ViT": TOKENS,
    "Dinov2": TOKENS,
    "Beit": TOKENS | {"use_relative_position_bias": True, "use_mean_pooling": True},
    "DeiT": TOKENS,
    "Swin": {"image_size": SIDE, "patch_size": 2, "embed_dim": 8, "depths": [1, 1],
             "num_heads": [2, 2], "window_size": 4},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
               "layer_type": "basic"},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "CLIP": TOWERS,
    "Siglip": TOWERS,
}  # fmt: skip
ENGINES = [
    pytest.param(
        "openvino", marks=pytest.mark.skipif(not is_openvino_installed(), reason="no OpenVINO")
    ),
    "torch",
]
Write = Callable[..., Path]


def make_processor(**settings: Any) -> Any:
    size = {"height": SIDE, "width": SIDE}
    return transformers.ViTImageProcessor(**({"size": size} | settings))


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Return a function that writes a model with random weights, once, as save_pretrained does."""
    folder = tmp_path_factory.mktemp("models")

    def write(name: str) -> Path:
        if not (folder / name).exists():
            config = getattr(transformers, f"{name}Config")(**MODELS[name])
            torch.manual_seed(3)
            model = transformers.AutoModel.from_config(config).eval()
            for value in model.parameters():
                if value.dim() == 1:
                    # Biases and normalizations, of which some would be zero.
                    torch.nn.init.uniform_(value, 0.5, 1.5)
            model.save_pretrained(folder / name)
            make_processor().save_pretrained(folder / name)
        return folder / name

    return write


def call(folder: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Call a model of the library as its documentation does."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    with torch.inference_mode():
        found = model(pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2))
    return {name: value.numpy() for name, value in found.items()}


def build_model(model: Path | str, **options: Any) -> Encoder:
    return build(spec(model, **{"engine": "torch", **options}))


def refuse(model: Path | str, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        build_model(model, **options)
    return str(refused.value)


def copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def change(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_the_model(write: Write, name: str, engine: str):
    encoder = build_model(write(name), engine=engine if name != "Beit" else "auto")
    images = noise(4, encoder.image_shape)
    assert encoder.image_shape == (SIDE, SIDE, 3)
    (features,) = encode(encoder, images)
    assert encoder.outputs[0].layer == "pooled"
    expected = call(write(name), images)["pooler_output"].reshape(4, -1)
    assert_features_equal(features, expected)


def test_a_network_that_would_end_openvino_has_another_engine():
    class Empty(torch.nn.Module):
        def forward(self, images: Any) -> Any:
            empty = images[:, :0].expand(-1, 0, -1, -1)
            return torch.cat([images, empty], 1).mean((2, 3))

    encoder = build(spec(Empty(), image_size=(SIDE, SIDE), image_shape=(SIDE, SIDE, 3)))
    assert encoder.engine == "torch"
    if is_openvino_installed():
        assert any("without elements" in warning for warning in encoder.warnings)


@pytest.mark.parametrize(
    ("pool", "take"), [("cls", lambda tokens: tokens[:, 0]), ("gap", lambda tokens: tokens.mean(1))]
)
def test_tokens_are_a_layer(write: Write, pool: str, take: Any):
    encoder = build_model(write("Dinov2"), layers=("last_hidden_state",), pool=pool)
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    assert_features_equal(features, take(call(write("Dinov2"), images)["last_hidden_state"]))


def test_maps_have_their_channels_first(write: Write):
    encoder = build_model(write("ResNet"), layers=("last_hidden_state",))
    assert (encoder.outputs[0].dimension, encoder.outputs[0].channel_axis) == (16, 1)


def test_layers_and_outputs_are_listed_without_weights(write: Write, tmp_path: Path):
    folder = copy(write("ViT"), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    _, layers = list_shapes(spec(folder))
    assert layers["pooled"] == (None, 16)
    assert layers["last_hidden_state"] == (None, 17, 16)
    assert layers["layernorm"] == layers["last_hidden_state"]


def test_only_the_vision_tower_is_kept(write: Write):
    encoder = build_model(write("CLIP"))
    assert encoder.graph is not None
    assert any("the vision tower alone" in note for note in encoder.notes)
    text = transformers.AutoModel.from_pretrained(write("CLIP")).text_model
    assert not any(
        np.asarray(value.detach()).tobytes() in encoder.graph
        for value in text.parameters()
        if value.numel() > 100
    )


def test_random_weights_are_those_of_the_library(write: Write):
    encoder = build_model(write("ViT"), weights="random")
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    assert np.abs(features - call(write("ViT"), images)["pooler_output"]).max() > 1e-3
    (again,) = encode(build_model(write("ViT"), weights="random"), images)
    np.testing.assert_array_equal(again, features)


def test_weights_from_a_file(write: Write, tmp_path: Path):
    config = transformers.ViTConfig(**MODELS["ViT"])
    torch.manual_seed(8)
    model = transformers.ViTForImageClassification(config).eval()
    torch.save(model.state_dict(), tmp_path / "epoch.pt")
    options = {"add_pooling_layer": False}
    encoder = build_model(
        write("ViT"), weights=str(tmp_path / "epoch.pt"), model_kwargs=options, pool="cls"
    )
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    with torch.inference_mode():
        found = model.vit(torch.from_numpy(images).permute(0, 3, 1, 2)).last_hidden_state[:, 0]
    assert_features_equal(features, found.numpy())
    assert any("begin with 'vit.'" in note for note in encoder.notes)


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_weights_of_a_whole_model(write: Write, tmp_path: Path, name: str):
    model = transformers.AutoModel.from_pretrained(write(name))
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    encoder = build_model(write(name), weights=str(tmp_path / "whole.pt"))
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    assert_features_equal(features, call(write(name), images)["pooler_output"])


def test_a_pooler_without_weights_is_not_taken(write: Write, tmp_path: Path):
    model = transformers.ViTModel.from_pretrained(write("ViT"), add_pooling_layer=False)
    model.save_pretrained(tmp_path / "model")
    make_processor().save_pretrained(tmp_path / "model")
    encoder = build_model(tmp_path / "model")
    assert encoder.outputs[0].layer == "last_hidden_state"
    assert any("have no pooler" in note for note in encoder.notes)
    assert "'pooler.dense" in refuse(tmp_path / "model", layers=("pooled",))


def test_another_image_size(write: Write):
    encoder = build_model(write("ViT"), image_size=(48, 64))
    assert encoder.image_shape == (48, 64, 3)
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    model = transformers.AutoModel.from_pretrained(write("ViT")).eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        expected = model(pixels, interpolate_pos_encoding=True).pooler_output
    assert_features_equal(features, expected.numpy())


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_has_the_pixels_of_the_processor_and_goes_on_without_the_model(
    write: Write, ray_embed: Command, tmp_path: Path
):
    make_pictures(tmp_path, 6)
    pixels = np.uint8(noise(1, (70, 51, 3))[0] * 255)
    Image.fromarray(pixels).save(tmp_path / "pictures" / "a" / "photo.jpg")
    folder = copy(write("ViT"), tmp_path / "trained")
    processor = (
        transformers.CLIPImageProcessorPil
        if hasattr(transformers, "CLIPImageProcessorPil")
        else transformers.CLIPImageProcessor
    )
    made = processor(
        size={"shortest_edge": 37}, crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.5, 0.5],
    )  # fmt: skip
    made.save_pretrained(folder)
    options = ("--source", "pictures", "--shard-size", 4, "--out", "run")
    done = ray_embed("run", "--model", "hf:trained", *options)
    assert done.code == 0, done.err
    assert "ViTModel of transformers; the layer is pooled by default" in done.err
    assert "normalized by mean 0.5,0.4,0.3 and std 0.5, as " in done.err
    run = ray_embed_package.load(tmp_path / "run")
    features, _ = run.to_numpy()
    paths = sorted((tmp_path / "pictures").rglob("*.*g"))
    images = made([Image.open(path) for path in paths], return_tensors="np")["pixel_values"]
    expected = call(folder, np.ascontiguousarray(images.transpose(0, 2, 3, 1)))["pooler_output"]
    assert_features_equal(features, expected)

    evaluated = ray_embed("evaluate", "run", "--random-weights", "--json")
    assert evaluated.code == 0, evaluated.err
    shutil.rmtree(folder)
    check_goes_on(tmp_path / "run", lambda: ray_embed("run", "--model", "hf:trained", *options))


# --- bad input -----------------------------------------------------------------------------------


def test_a_model_of_text(tmp_path: Path):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    make_processor().save_pretrained(tmp_path / "bert")
    assert "BertModel takes input_ids, and an encoder takes one" in refuse(tmp_path / "bert")


def test_pickles_are_not_asked_for(write: Write):
    assert "runs code" in refuse(write("ViT"), model_kwargs={"weights_only": False})


def test_a_tower_that_is_no_model_of_its_own(tmp_path: Path):
    folder = tmp_path / "blip"
    transformers.BlipConfig(vision_config=TOKENS, text_config=TOKENS).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    assert "no model of BlipVisionConfig alone; write a function" in refuse(folder)


def test_a_damaged_processor(write: Write, tmp_path: Path):
    folder = copy(write("ViT"), tmp_path / "model")
    next(folder.glob("*processor_config.json")).write_text("{")
    assert "transformers cannot load it" in refuse(folder, pixel_options=("scale",))


def test_a_folder_without_weights(write: Write, tmp_path: Path):
    folder = copy(write("ViT"), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    message = refuse(folder)
    assert "the folder has no weights; put model.safetensors or pytorch_model.bin" in message


def test_damaged_weights(write: Write, tmp_path: Path):
    folder = copy(write("ViT"), tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])
    assert f"--model {folder}: transformers cannot load it" in refuse(folder)


def test_code_of_a_repository_does_not_run(write: Write, tmp_path: Path):
    folder = copy(write("ViT"), tmp_path / "model")
    change(
        folder / "config.json", model_type="mine",
        auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"},
    )  # fmt: skip
    (folder / "mine.py").write_text("raise SystemExit('it ran')")
    assert "it needs code from its repository, which is not run" in refuse(folder)


def test_a_model_without_image_processor(write: Write, tmp_path: Path):
    folder = copy(write("ViT"), tmp_path / "model")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    assert "has no preprocessor_config.json" in refuse(folder)
    assert build_model(folder, pixel_options=("scale",)).image_shape == (SIDE, SIDE, 3)


def test_a_processor_that_no_option_expresses(write: Write, tmp_path: Path):
    folder = copy(write("ViT"), tmp_path / "model")
    change(next(folder.glob("*processor_config.json")), do_thumbnail=True)
    assert "has the step do_thumbnail, which no option can express" in refuse(folder)


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refuse("hf:nobody/no-such-model")
    assert message.startswith("--model hf:nobody/no-such-model: ")
    assert "preprocessor_config.json" in message
    assert "give --model FOLDER" in message


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name)
    )
    assert "pip install 'ray_embed[transformers]'" in refuse("hf:nobody/model")


def test_uris_are_no_names():
    assert find_library("hf://datasets/somebody/model.keras") is None
    assert find_library("hf:somebody/model") is not None
