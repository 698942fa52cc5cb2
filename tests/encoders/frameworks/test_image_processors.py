# SPDX-License-Identifier: Apache-2.0
"""The pixels of the image processors of transformers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.prepared import make_spec

from ray_embed.config import RunConfig
from ray_embed.encoders.spec import KeptModel
from ray_embed.encoders.torch_models.libraries.image_processors import find_pixel_options
from ray_embed.errors import InputError
from ray_embed.extraction.pixels import adopt_options, list_given_options
from ray_embed.images import decode

pytest.importorskip("torchvision", reason="PyTorch is large: pip install torchvision")
transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")

WHERE = "--model hf:x: its image processor"
VALUES, RESIZING = ("scale",), ("resize",)
# In levels. The backend torchvision rounds differently when it resizes.
BOUNDS = {"pil": 1e-3, "torchvision": 2 + 1e-3}
# Pillow resizes columns before rows where that is faster, torchvision never does. The results of
# the first are clipped, which matters at sharp edges only.
SHARP, SHARP_BOUND = "tall_noise.png", 30
ONLY_TORCHVISION = ("DINOv3ViT", "Tipsv2")
LEVELS = {"unit": 255, "symmetric": 127.5, "none": 1}

SYMMETRIC = {"rescale_factor": 1 / 127.5, "rescale_offset": True}
PROCESSORS = [
    ("ViT", {}, "stretch"),
    ("ViT", {"size": {"height": 96, "width": 160}, "resample": 1}, "stretch"),
    ("ViT", {"rescale_factor": 0.00392157}, "stretch"),
    ("ViT", {"rescale_factor": 1 / 127.5, "do_normalize": False}, "stretch"),
    ("ViT", {"do_rescale": False, "do_normalize": False}, "stretch"),
    ("ViT", {"do_rescale": False, "image_mean": [124, 117, 104], "image_std": 58.0}, "stretch"),
    ("DeiT", {"do_center_crop": False}, "stretch"),
    ("Pvt", {}, "stretch"),
    ("Siglip", {}, "stretch"),
    ("Blip", {}, "stretch"),
    ("Beit", {"do_reduce_labels": True}, "stretch"),
    ("Segformer", {}, "stretch"),
    ("DPT", {}, "stretch"),
    ("Tipsv2", {}, "stretch"),
    ("DINOv3ViT", {}, "stretch"),
    ("CLIP", {}, 1.0),
    ("ChineseCLIP", {"resample": 1}, 1.0),
    ("OwlViT", {"do_center_crop": False, "size": {"height": 160, "width": 96}}, "stretch"),
    ("Bit", {"size": {"shortest_edge": 256}}, 224 / 256),
    ("Bit", {"size": {"shortest_edge": 259}}, 224 / 259),
    ("MobileNetV1", {}, 224 / 256),
    ("MobileNetV2", {}, 224 / 256),
    ("ConvNext", {"size": {"shortest_edge": 224}}, 224 / 256),
    ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.9}, 224 / 248),
    ("ConvNext", {}, "stretch"),
    ("PoolFormer", {}, 224 / 248),
    ("PoolFormer", {"crop_pct": 0.95, "size": {"height": 224, "width": 224}}, 224 / 235),
    ("PoolFormer", {"crop_pct": None}, 1.0),
    ("Levit", {}, 224 / 256),
    ("EfficientNet", {}, "stretch"),
    ("EfficientNet", {"include_top": False}, "stretch"),
    ("EfficientNet", {**SYMMETRIC, "do_normalize": False, "include_top": False}, "stretch"),
    ("EfficientNet", {**SYMMETRIC, "do_normalize": False}, "stretch"),
    ("EfficientNet", SYMMETRIC, "stretch"),
    ("MobileViT", {"size": {"shortest_edge": 288}, "do_normalize": True}, 256 / 288),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of odd sizes: smooth ones as photos are, and noise."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(2)
    paths = [folder / name for name in ("wide.png", "small.png", "tall.png", "noise.jpg")]
    for path, size in zip(paths, [(431, 250), (91, 60), (255, 337)], strict=False):
        small = random.integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    noise = random.integers(0, 256, (241, 327, 3), np.uint8)
    Image.fromarray(noise).save(paths[-1], quality=90)
    noise = random.integers(0, 256, (501, 211, 3), np.uint8)
    Image.fromarray(noise).save(folder / SHARP)
    return [*paths, folder / SHARP]


def make_processor(name: str, backend: str = "pil", **settings: Any) -> Any:
    """Make a processor, whose backend is called as in transformers."""
    ending = "Pil" if backend == "pil" and name not in ONLY_TORCHVISION else ""
    return getattr(transformers, f"{name}ImageProcessor{ending}")(**settings)


def refuse(name: str, given: tuple[str, ...] = (), **settings: Any) -> str:
    described = make_processor(name, "torchvision", **settings).to_dict()
    with pytest.raises(InputError) as refused:
        find_pixel_options(described, WHERE, given)
    return str(refused.value)


@pytest.mark.parametrize(("name", "settings", "resizing"), PROCESSORS)
def test_pixels_are_those_of_the_processor(
    pictures: list[Path], name: str, settings: dict[str, Any], resizing: Any
):
    processors = [make_processor(name, backend, **settings) for backend in BOUNDS]
    options, size = find_pixel_options(processors[0].to_dict(), WHERE, ())
    assert size is not None
    assert options.get("crop_fraction", "stretch") == resizing
    assert options.get("crop_corner") == (None if resizing == "stretch" else "floor")
    level = np.asarray(options["std"] or 1.0) * LEVELS[options["scale"]]
    found = prepare(pictures, size, options)
    for processor in processors:
        assert find_pixel_options(processor.to_dict(), WHERE, ()) == (options, size)
        for path, pixels in zip(pictures, found, strict=True):
            expected = processor(Image.open(path), return_tensors="np")["pixel_values"][0]
            difference = np.abs(pixels - expected.transpose(1, 2, 0)) * level
            bound = BOUNDS[processor.backend]
            if path.name == SHARP and processor.backend == "torchvision":
                bound = SHARP_BOUND
            assert difference.max() < bound, path.name


def prepare(paths: list[Path], size: tuple[int, int], options: dict[str, Any]) -> np.ndarray:
    """Prepare files as a run with these options does."""
    fields = {name: value for name, value in options.items() if value is not None}
    fields["reverse_channels"] = fields.pop("channel_order", "rgb") == "bgr"
    pixels = make_spec((*size, 3), is_jpeg_accurate=True, **fields)
    batches = decode.file_batches([bytes(path) for path in paths], pixels, 4, 1)
    return np.concatenate([batch.images for batch in batches])


def test_options_of_well_known_processors():
    clip = make_processor("CLIP", image_mean=[0.48, 0.46, 0.41], image_std=[0.27, 0.26, 0.28])
    described = {"feature_extractor_type": "CLIPFeatureExtractor"}
    for settings in (clip.to_dict(), clip.to_dict() | {"image_processor_type": ""} | described):
        assert find_pixel_options(settings, WHERE, ()) == (
            {
                "scale": "unit", "mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28),
                "crop_fraction": 1.0, "crop_corner": "floor", "interpolation": "bicubic",
                "antialias": True,
            },
            (224, 224),
        )  # fmt: skip
    settings = make_processor("MobileViT", size={"shortest_edge": 288}).to_dict()
    options, size = find_pixel_options(settings, WHERE, ())
    assert (options["channel_order"], options["mean"], size) == ("bgr", (), (256, 256))
    efficient = make_processor(
        "EfficientNet", **SYMMETRIC, do_normalize=False, include_top=False
    ).to_dict()
    assert find_pixel_options(efficient, WHERE, ())[0]["scale"] == "symmetric"


def test_given_options_replace_those_of_the_processor():
    settings = make_processor("CLIP").to_dict()
    options, size = find_pixel_options(settings, WHERE, (*VALUES, *RESIZING))
    assert options == {"interpolation": "bicubic", "antialias": True}
    assert size == (224, 224)
    options, _ = find_pixel_options(settings, WHERE, ("crop_fraction",))
    assert (options["crop_corner"], "crop_fraction" in options) == ("floor", False)


@pytest.mark.parametrize(
    ("given", "corner", "order"),
    [
        ({}, "floor", "bgr"),
        ({"crop_fraction": 0.8}, "floor", "bgr"),
        ({"crop_corner": "round"}, "round", "bgr"),
        ({"channel_order": "rgb"}, "floor", "rgb"),
    ],
)
def test_a_run_adopts_corner_and_channel_order(given: dict[str, Any], corner: str, order: str):
    config = RunConfig(model="hf:x", sources=["a"], **given)
    settings = make_processor("MobileViT", size={"shortest_edge": 320}).to_dict()
    pixels, _ = find_pixel_options(settings, WHERE, list_given_options(config))
    kept = SimpleNamespace(spec=SimpleNamespace(kept=KeptModel(pixels=pixels)))
    adopted = adopt_options(config, kept)
    assert adopted.crop_fraction == 0.8
    assert (adopted.crop_corner, adopted.channel_order) == (corner, order)


# --- what no option can express ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "part"),
    [
        ("DeiT", {}, "stretches images to 256×256 and crops them to 224×224"),
        ("MobileViT", {}, "resizes the short side of images to 224 and pads them to 256"),
        ("CLIP", {"do_center_crop": False}, "short side of images to 224 and does not crop them"),
        ("CLIP", {"crop_size": {"height": 224, "width": 192}}, "to 224 and crops them to 224×192"),
        ("CLIP", {"size": {"shortest_edge": 224, "longest_edge": 400}}, "resizes images to {"),
        ("ViT", {"do_resize": False}, "does not resize images"),
        ("ViT", {"do_pad": True, "pad_size": {"height": 256, "width": 256}}, "pads images to {"),
        ("DPT", {"ensure_multiple_of": 14}, "resizes images to multiples of 14"),
        ("DPT", {"keep_aspect_ratio": True}, "keeps the aspect ratio of images"),
        ("DPT", {"size_divisor": 16}, "resizes images to multiples of 16"),
    ],
)
def test_resizing_that_no_option_can_express(name: str, settings: dict[str, Any], part: str):
    message = refuse(name, **settings)
    assert message.startswith(f"{WHERE} ")
    assert part in message
    assert message.endswith(
        ", which no option can express; choose another way with --resize or --crop-fraction"
    )
    assert refuse(name, VALUES, **settings) == message
    described = make_processor(name, "torchvision", **settings).to_dict()
    options, _ = find_pixel_options(described, WHERE, RESIZING)
    assert "scale" in options
    assert not {"resize", "crop_fraction", "crop_corner"} & set(options)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Pix2Struct", "into at most 2048 patches"),
        ("Siglip2", "into at most 256 patches"),
        ("Donut", "has the step do_thumbnail"),
        ("Idefics3", "has the step do_image_splitting"),
        ("ImageGPT", "has the step do_color_quantize"),
        ("Perceiver", "is PerceiverImageProcessor, whose way of resizing is not known"),
    ],
)
def test_processors_that_do_more(name: str, part: str):
    assert part in refuse(name)
    assert "--mean and --std" in refuse(name, RESIZING)
    settings = make_processor(name, "torchvision").to_dict()
    options, size = find_pixel_options(settings, WHERE, (*RESIZING, *VALUES, "interpolation"))
    assert not {"scale", "mean", "std", "resize", "crop_fraction"} & set(options)
    assert size is None


@pytest.mark.parametrize(
    ("name", "resample", "method"),
    [("ViT", 0, "nearest"), ("ViT", 4, "box"), ("ViT", 5, "hamming"),
     ("DINOv3ViT", 3, "unclipped bicubic")],
)  # fmt: skip
def test_interpolation_that_no_option_can_express(name: str, resample: int, method: str):
    message = refuse(name, resample=resample)
    assert f"resizes images with '{method}' interpolation" in message
    settings = make_processor(name, "torchvision", resample=resample).to_dict()
    assert "interpolation" not in find_pixel_options(settings, WHERE, ("interpolation",))[0]


def test_settings_of_an_unknown_class():
    settings = {"size": 224, "do_resize": True, "do_normalize": False}
    with pytest.raises(InputError, match="its image processor is of an unknown class, whose way"):
        find_pixel_options(settings, WHERE, ())
