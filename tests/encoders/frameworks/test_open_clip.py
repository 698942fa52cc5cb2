# SPDX-License-Identifier: Apache-2.0
"""Encoders of OpenCLIP: the features of `encode_image`, and the pixels of its own transform."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.command import Command
from support.encoders import encode, noise, spec
from support.features import assert_features_equal
from support.named_models import check_goes_on, write_photos
from support.prepared import pixels_of

import ray_embed as ray_embed_package
from ray_embed.encoders.build import build
from ray_embed.encoders.engines.openvino import is_openvino_installed
from ray_embed.encoders.layer_shapes import list_shapes
from ray_embed.encoders.torch_models.libraries.registry import find_library
from ray_embed.errors import InputError
from ray_embed.runs.workspace import make_default_name

torch = pytest.importorskip("torch", reason="PyTorch is large: pip install torch")
open_clip = pytest.importorskip("open_clip", reason="needs the extra `open-clip`")

from open_clip.push_to_hf_hub import save_for_hf  # noqa: E402

SEED = 0
SIZE = 32
TEXT = {"context_length": 6, "vocab_size": 40, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
RESNET = {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TIMM = {"image_size": SIZE, "timm_model_name": "test_vit", "timm_pool": "token"}
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "quick": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "resnet": {"embed_dim": 24, "vision_cfg": RESNET, "text_cfg": TEXT},
    "timm": {"embed_dim": 24, "custom_text": True, "vision_cfg": TIMM, "text_cfg": TEXT},
    "coca": {
        "embed_dim": 24, "custom_text": True, "text_cfg": {**TEXT, "embed_cls": True},
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4,
                       "attn_pooler_queries": 5, "output_tokens": True},
        "multimodal_cfg": {"width": 24, "heads": 2, "layers": 1, "context_length": 6},
    },
}  # fmt: skip
ENGINES = [
    pytest.param(
        "openvino", marks=pytest.mark.skipif(not is_openvino_installed(), reason="no OpenVINO")
    ),
    "torch",
]


def write_folder(folder: Path, name: str = "vit", **pixels: Any) -> Any:
    """Write a model with random weights, as open_clip does for the hub. Return the model."""
    folder.mkdir(parents=True)
    config = {"model_cfg": MODELS[name], "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(7)
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    for value in model.parameters():
        if value.dim() == 1:
            # Biases and normalizations, of which some would be zero.
            torch.nn.init.uniform_(value, 0.5, 1.5)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    save_for_hf(model, tokenizer, MODELS[name], folder)
    return model


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["preprocess_cfg"] |= changes
    file.write_text(json.dumps(content))


def make_spec(name: Any, **options: Any) -> Any:
    return spec(name, **{"engine": "torch", **options})


def call(model: Any, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        given = torch.from_numpy(images).permute(0, 3, 1, 2)
        return model.encode_image(given, normalize=False).numpy()


def refuse(name: Any, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        build(make_spec(name, **options))
    return str(refused.value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder for each model, and make the small ViT known by the name ray-vit."""
    root = tmp_path_factory.mktemp("models")
    for name in MODELS:
        write_folder(root / name, name)
    (root / "ray-vit.json").write_text(json.dumps(MODELS["vit"]))
    open_clip.add_model_config(root / "ray-vit.json")
    return root


def load(folder: Path, **options: Any) -> Any:
    return open_clip.create_model(f"local-dir:{folder}", **options).eval()


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *(pytest.param(name, "torch", id=f"{name}-torch") for name in MODELS),
        *(pytest.param(name, *ENGINES[0].values, marks=ENGINES[0].marks, id=f"{name}-openvino")
          for name in ("vit", "resnet")),
    ],
)  # fmt: skip
def test_features_are_those_of_encode_image(folders: Path, name: str, engine: str):
    encoder = build(make_spec(folders / name, engine=engine))
    assert (encoder.engine, encoder.image_shape) == (engine, (SIZE, SIZE, 3))
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    assert_features_equal(features, call(load(folders / name), images))


def test_layers_are_listed_without_weights(folders: Path):
    _, layers = list_shapes(make_spec("open_clip:ray-vit"))
    assert layers["pooled"] == (None, 24)
    assert layers["transformer.resblocks.1"] == layers["ln_post"] == (None, 17, 32)
    assert "output" not in layers
    assert not any("text" in name or "token" in name for name in layers)


def test_several_layers(folders: Path):
    layers = ("pooled", "ln_post")
    encoder = build(make_spec(folders / "vit", layers=layers, pool=None))
    images = noise(4, encoder.image_shape)
    pooled, tokens = encode(encoder, images)
    model, found = load(folders / "vit"), []
    model.visual.ln_post.register_forward_hook(lambda *hooked: found.append(hooked[2]))
    assert_features_equal(pooled, call(model, images))
    assert_features_equal(tokens, found[0].numpy().mean(1))


@pytest.mark.parametrize(
    ("name", "size"), [("vit", (48, 48)), ("vit", (32, 64)), ("timm", (48, 48))]
)
def test_another_image_size(folders: Path, name: str, size: tuple[int, int]):
    # A crop that is no square has no option.
    encoder = build(make_spec(folders / name, image_size=size, pixel_options=("resize",)))
    assert encoder.image_shape == (*size, 3)
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    assert_features_equal(features, call(load(folders / name, force_image_size=size), images))


def test_random_weights_are_those_of_the_library(folders: Path):
    encoder = build(make_spec("open_clip:ray-vit", weights="random"))
    images = noise(4, encoder.image_shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = open_clip.create_model("ray-vit").eval()
    (features,) = encode(encoder, images)
    assert_features_equal(features, call(model, images))


def test_the_text_tower_is_no_part_of_the_encoder(folders: Path, tmp_path: Path):
    shutil.copytree(folders / "vit", tmp_path / "other")
    (tmp_path / "other" / "open_clip_model.safetensors").unlink()
    file = tmp_path / "other" / "open_clip_pytorch_model.bin"
    state = torch.load(file)
    state["token_embedding.weight"] += 1
    torch.save(state, file)
    first, second = (build(make_spec(f)) for f in (folders / "vit", tmp_path / "other"))
    assert (first.architecture, first.weights_digest) == (
        second.architecture, second.weights_digest,
    )  # fmt: skip
    assert first.graph is not None
    text = load(folders / "vit").token_embedding.weight.detach().numpy().tobytes()
    visual = load(folders / "vit").visual.conv1.weight.detach().numpy().tobytes()
    assert visual in first.graph
    assert text not in first.graph


# --- published weights ---------------------------------------------------------------------------


@pytest.fixture
def hub(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a model in the cache of the hub, and its weights published under a tag of ray-vit."""
    repository = tmp_path / "models--user--small"
    shutil.copytree(folders / "vit", repository / "snapshots" / "1234")
    change_config(repository / "snapshots" / "1234", resize_mode="squash")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1234")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    published = {
        "hf_hub": "user/small/", "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear", "resize_mode": "squash",
    }  # fmt: skip
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ray-vit", {"tiny_e1": published})


@pytest.mark.parametrize("name", ["ray-vit/tiny-e1", "hf-hub:user/small"])
def test_published_weights(folders: Path, hub: None, name: str):
    encoder = build(make_spec(f"open_clip:{name}"))
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    assert_features_equal(features, call(load(folders / "vit"), images))
    # The pixels are the same without the weights.
    untrained = build(make_spec(f"open_clip:{name}", weights="random"))
    assert encoder.spec.kept is not None
    assert untrained.spec.kept is not None
    assert untrained.spec.kept.pixels == encoder.spec.kept.pixels
    assert encoder.spec.kept.pixels["resize"] is None
    assert untrained.weights_digest != encoder.weights_digest
    if name.startswith("ray-vit"):
        assert encoder.spec.kept.pixels["mean"] == (0.1, 0.2, 0.3)
        assert f"{name}: open_clip's image tower alone, with its weights tiny-e1" in " ".join(
            encoder.notes
        )


# --- weights from files --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "training", "tower"])
def test_weights_from_a_file(folders: Path, tmp_path: Path, kind: str):
    torch.manual_seed(5)
    model = load(folders / "vit", load_weights=False)
    state = model.state_dict()
    content, begin = {
        "model": (state, "visual."),
        # As open_clip's own training writes it.
        "training": (
            {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
            "module.visual.",
        ),
        "tower": (model.visual.state_dict(), None),
    }[kind]
    torch.save(content, tmp_path / "epoch_3.pt")
    encoder = build(make_spec("open_clip:ray-vit", weights=str(tmp_path / "epoch_3.pt")))
    note = f"--weights: the weights whose names begin with {begin!r} are taken"
    assert (note in encoder.notes) == (begin is not None)
    images = noise(4, encoder.image_shape)
    (features,) = encode(encoder, images)
    assert_features_equal(features, call(model, images))


def test_weights_that_do_not_fit(folders: Path):
    file = folders / "resnet" / "open_clip_model.safetensors"
    message = refuse("open_clip:ray-vit", weights=str(file))
    assert message.startswith(f"--weights {file}: it does not fit open_clip:ray-vit: it lacks ")
    assert "'class_embedding' (32,)" in message
    # Names are compared without what the file's image tower begins with.
    assert "the model has no 'bn1." in message


# --- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["ViT-B-32/laion2b_s34b_b79k", "ViT-B-16-SigLIP/webli", "ViT-L-14-CLIPA/datacomp1b",
     "MobileCLIP-S1/datacompdr", "RN50/openai"],
)  # fmt: skip
def test_pixels_are_those_of_the_transform(tmp_path: Path, name: str):
    library, rest = find_library(f"open_clip:{name}") or (None, "")
    assert library is not None
    with torch.device("meta"):
        options = {"model_kwargs": {"device": "meta"}}
        named = library.load(make_spec(f"open_clip:{name}", **options), rest, False)
    size = named.image_size
    assert size is not None
    known = open_clip.get_pretrained_cfg(*name.split("/"))
    transform = open_clip.image_transform(
        size[0], is_train=False,
        **{key: known[key] for key in ("mean", "std", "resize_mode", "interpolation")},
    )  # fmt: skip
    options = {key: value or ("stretch" if key == "resize" else value)
               for key, value in named.pixels.items()}  # fmt: skip
    for path in write_photos(tmp_path):
        found = pixels_of(path, (*size, 3), is_jpeg_accurate=True, **options)
        expected = transform(Image.open(path)).permute(1, 2, 0).numpy()
        levels = np.abs(found - expected) * np.asarray(known["std"], np.float32) * 255
        assert levels.max() < 1e-3


# --- the run folder ------------------------------------------------------------------------------


def test_a_run_has_the_pixels_of_the_library_and_goes_on_without_the_model(
    ray_embed: Command, tmp_path: Path
):
    paths = write_photos(tmp_path / "pictures", ("png", "jpg"))
    folder = tmp_path / "trained"
    write_folder(folder, mean=[0.5, 0.4, 0.3], std=0.5, interpolation="bilinear")
    # Folders for transformers have a description of their own.
    (folder / "config.json").write_text(json.dumps({"architecture": "a", "pretrained_cfg": {}}))
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    options = ("--source", "pictures", "--shard-size", 3, "--out", "run")
    done = ray_embed("run", "--model", "open_clip:trained", *options)
    assert done.code == 0, done.err
    assert "trained: open_clip's image tower alone, with its weights; the layer pooled" in done.err
    assert (
        "pixels: RGB files, 32×32 (center crop after resizing, bilinear, antialiased), scaled to "
        "[0, 1], normalized by mean 0.5,0.4,0.3 and std 0.5, as "
    ) in done.err
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["crop_fraction"], config["interpolation"], config["antialias"]) == (
        1.0, "bilinear", True,
    )  # fmt: skip
    features, _ = ray_embed_package.load(tmp_path / "run").to_numpy()
    images = torch.stack([transform(Image.open(path)) for path in paths])
    with torch.inference_mode():
        expected = model.eval().encode_image(images).numpy()
    assert_features_equal(features, expected)

    evaluated = ray_embed("evaluate", "run", "--random-weights", "--json")
    assert evaluated.code == 0, evaluated.err
    baseline, _ = ray_embed_package.load(tmp_path / "run" / "random-weights").to_numpy()
    assert baseline.shape == features.shape
    assert np.abs(baseline - features).max() > 0.1 * np.abs(features).max()

    shutil.rmtree(folder)
    check_goes_on(tmp_path / "run", lambda: ray_embed("run", "--model", "trained", *options))


def test_default_run_folder():
    for model, folder in (
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "runs/ViT-B-32-laion2b_s34b_b79k"),
        ("open_clip:hf-hub:laion/CLIP-ViT-B-32", "runs/CLIP-ViT-B-32"),
    ):
        assert make_default_name(model, None) == folder


# --- bad input -----------------------------------------------------------------------------------


def test_unknown_names_and_tags(folders: Path):
    message = refuse("open_clip:ViT-B-33/openai")
    assert "did you mean open_clip:ViT-B-32" in message
    message = refuse("open_clip:ViT-B-32/imaginary")
    assert "open_clip has no weights 'imaginary' of ViT-B-32; it has open_clip:ViT-B-32/" in message
    assert "open_clip:ViT-B-32/laion2b_s34b_b79k" in message
    assert "it has none: omit the tag, and give --weights" in refuse("open_clip:ray-vit/any")


def test_a_name_without_weights(folders: Path):
    message = refuse("open_clip:ViT-B-32")
    assert message.startswith("--model open_clip:ViT-B-32: it names no weights; give one of ")
    assert "open_clip:ViT-B-32/laion2b_s34b_b79k, " in message
    assert message.endswith("; or --weights FILE, or --weights random")
    assert refuse("open_clip:ray-vit").endswith("give --weights FILE, or --weights random")


def test_weights_of_another_activation():
    message = refuse("open_clip:ViT-B-32/openai")
    assert "were trained with QuickGELU, and ViT-B-32 has GELU" in message
    assert "give --model open_clip:ViT-B-32-quickgelu/openai" in message
    # Its image tower has another activation anyway.
    list_shapes(make_spec("open_clip:RN50/openai"))


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    page = "https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    message = refuse("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert message.startswith(
        "--model open_clip:ViT-B-32/laion2b_s34b_b79k: its files cannot be downloaded"
    )
    assert (
        f"get open_clip_model.safetensors or open_clip_pytorch_model.bin from {page} on another "
        "machine, copy it here, and add --weights FILE"
    ) in message
    message = refuse("open_clip:hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    assert ": its files cannot be downloaded from https://huggingface.co/laion/CLIP-" in message
    assert (
        "get open_clip_config.json and open_clip_model.safetensors or open_clip_pytorch_model.bin "
        f"from {page} on another machine, copy them into a folder here, and give --model FOLDER"
    ) in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'{"model_cfg": {"embed_dim": "\xff"}}', "open_clip_config.json is no JSON file"),
        (b'["model_cfg"]', "open_clip_config.json lacks 'model_cfg'"),
        (b'{"model_cfg": {"embed_dim": 1}}', "lacks 'vision_cfg', 'text_cfg' in 'model_cfg'"),
    ],
)
def test_damaged_descriptions(folders: Path, tmp_path: Path, content: bytes, part: str):
    shutil.copytree(folders / "vit", tmp_path / "größe")
    (tmp_path / "größe" / "open_clip_config.json").write_bytes(content)
    assert part in refuse(tmp_path / "größe")


def test_folders_without_weights(folders: Path, tmp_path: Path):
    folder = tmp_path / "größe"
    shutil.copytree(folders / "vit", folder)
    build(make_spec(folder))
    (folder / "open_clip_model.safetensors").unlink()
    (folder / "open_clip_pytorch_model.bin").unlink()
    message = refuse(folder)
    assert "the folder has no weights; put open_clip_model.safetensors or " in message
    build(make_spec(folder, weights="random"))


@pytest.mark.parametrize(
    ("changed", "part", "given"),
    [
        ({"resize_mode": "longest", "fill_color": 9}, "pads images with the level 9", "resize"),
        ({"resize_mode": "widest"}, "resizes images in the mode 'widest'", "resize"),
        ({"interpolation": "nearest"}, "resizes images with 'nearest'", "interpolation"),
        ({"mean": [0.5, 0.5]}, "with mean [0.5, 0.5], which is not one number per", "mean"),
        ({"mode": "L"}, "converts images to the mode 'L'", "mean"),
    ],
)
def test_transforms_that_no_option_can_express(
    folders: Path, tmp_path: Path, changed: dict[str, Any], part: str, given: str
):
    shutil.copytree(folders / "vit", tmp_path / "other")
    change_config(tmp_path / "other", **changed)
    assert part in refuse(tmp_path / "other")
    build(make_spec(tmp_path / "other", pixel_options=(given,)))


def test_crops_that_are_no_square(folders: Path):
    message = refuse(folders / "vit", image_size=(32, 64))
    assert "crops images to 32×64, no square, which no option can express" in message


def test_open_clip_is_missing(folders: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "open_clip" else find(name)
    )
    for model in ("open_clip:ray-vit", str(folders / "vit")):
        assert refuse(model) == (
            f"--model {model}: its library is not installed; pip install 'ray_embed[open-clip]'"
        )


def test_arguments_that_the_library_refuses(folders: Path):
    message = refuse(folders / "vit", model_kwargs={"no_such": 1})
    assert "open_clip cannot create it with (no_such=1): TypeError" in message
    assert "open_clip cannot create it with (force_image_size=64)" in refuse(
        folders / "resnet", image_size=(64, 64)
    )
