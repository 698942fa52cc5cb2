# SPDX-License-Identifier: Apache-2.0
"""Which engine runs each encoder, how well it agrees, and how fast it is beside the folded graph.

    python tests/benchmarks/encoder_engines.py
    python tests/benchmarks/encoder_engines.py --only MobileNetV2,ConvNeXtTiny --side 96

The small families of keras.applications, a vision transformer of Keras layers, HED (the side
outputs of VGG16, upsampled and fused), and backbones of KerasHub. KerasHub is no dependency of
ray_embed: its rows are skipped if it is not installed.

Each encoder is saved as `.keras` and exported as a SavedModel. A row gives the engine of both, and

    agreement   the largest difference from a plain call of both, in units of what is allowed
    chosen      images per second of the `.keras` file with the engine that was chosen
    folded      the same with the folded graph
    ratio       of the two
    by CPU      the same ratio, of images per second of processor time: for machines that are busy

Batches of 16 run on all cores as in an actor, the two engines in turns. A row has medians of the
rounds. Weights are those that Keras starts with, with a fixed seed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from agreement import violation
from batch_sizes import pooled, resized, smooth_images
from encoders_zoo import FAMILIES
from machine import described, threads
from sides import turns

from ray_embed.encoders.build import build
from ray_embed.encoders.engines.base import OpenEngine
from ray_embed.encoders.engines.registry import open_engine
from ray_embed.encoders.spec import Encoder, EncoderSpec

BATCH = 16
FORMS = ("keras", "export")


@dataclass(frozen=True)
class Rate:
    """Images per second, and per second of processor time."""

    images: float
    by_cpu: float


@dataclass(frozen=True)
class Measured:
    """What a row shows: the engine of each form, the agreement, and what both engines reach."""

    engines: tuple[str, ...]
    agreement: float
    chosen: Rate
    folded: Rate


def encoders() -> dict[str, Callable[[int], Any]]:
    """Name the encoders; each function makes a model for images of a side."""
    found: dict[str, Callable[[int], Any]] = {name: _family(name) for name in FAMILIES}
    return {**found, "ViT (Keras layers)": vision_transformer, "HED (VGG16)": edge_detector, **HUB}


def _family(name: str) -> Callable[[int], Any]:
    def make(side: int) -> Any:
        family = getattr(keras.applications, name)
        return family(weights=None, include_top=False, input_shape=(side, side, 3))

    return make


def vision_transformer(side: int) -> Any:
    """A small vision transformer, as in the examples of Keras."""
    layers = keras.layers
    image = keras.Input((side, side, 3))
    patches = keras.ops.image.extract_patches(image, 16)
    x = layers.Dense(192)(layers.Reshape((-1, 16 * 16 * 3))(patches))
    for _block in range(12):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(3, 64)(y, y)])
        y = layers.Dense(768, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(192)(y)])
    return keras.Model(image, layers.LayerNormalization()(x))


def edge_detector(side: int) -> Any:
    """Holistically-nested edge detection: (N, side, side, 3) to (N, side, side, 1)."""
    layers = keras.layers
    vgg = keras.applications.VGG16(weights=None, include_top=False, input_shape=(side, side, 3))
    outputs = []
    for stage, convolutions in enumerate((2, 2, 3, 3, 3)):
        x = layers.Conv2D(1, 1)(vgg.get_layer(f"block{stage + 1}_conv{convolutions}").output)
        if stage:
            x = layers.UpSampling2D(2**stage, interpolation="bilinear")(x)
        cut = [(0, x.shape[axis] - side) for axis in (1, 2)]
        outputs.append(layers.Cropping2D([(0, max(0, more)) for _, more in cut])(x))
    return keras.Model(vgg.input, layers.Conv2D(1, 1)(layers.Concatenate()(outputs)))


def _vit(side: int) -> Any:
    import keras_hub

    return keras_hub.models.ViTBackbone(
        image_shape=(side, side, 3),
        patch_size=16,
        num_layers=12,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
    )


def _mit(side: int) -> Any:
    import keras_hub

    return keras_hub.models.MiTBackbone(
        image_shape=(side, side, 3),
        layerwise_depths=[2, 2, 2, 2],
        num_layers=4,
        layerwise_num_heads=[1, 2, 5, 8],
        layerwise_sr_ratios=[8, 4, 2, 1],
        hidden_dims=[32, 64, 160, 256],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
    )


def _sam(side: int) -> Any:
    import keras_hub

    return keras_hub.models.ViTDetBackbone(
        image_shape=(side, side, 3),
        patch_size=16,
        num_layers=12,
        num_heads=3,
        hidden_size=192,
        intermediate_dim=768,
        global_attention_layer_indices=[2, 5, 8, 11],
        window_size=7,
        num_output_channels=256,
    )


def _dinov2(side: int) -> Any:
    import keras_hub

    return keras_hub.models.DINOV2Backbone(
        image_shape=(side, side, 3),
        patch_size=14,
        num_layers=12,
        num_heads=6,
        hidden_dim=384,
        intermediate_dim=1536,
    )


HUB = {
    "ViT-Ti (KerasHub)": _vit,
    "MiT-B0 (KerasHub)": _mit,
    "SAM-Ti (KerasHub)": _sam,
    "DINOv2-S (KerasHub)": _dinov2,
}


def measure(model: Any, root: Path, rounds: int, seconds: float) -> Measured:
    """Build the encoder from each form, compare it with a plain call, and measure it."""
    side = model.input_shape[1]
    # Encoders that rescale their images themselves take them from 0 to 255.
    rescales = any(type(layer).__name__ == "Rescaling" for layer in model._flatten_layers())
    images = resized(smooth_images(BATCH), side) * np.float32(255 if rescales else 1)
    expected = pooled(np.asarray(model(images, training=False)))["gap"]
    built = [_build(model, form, root) for form in FORMS]
    chosen = built[0]
    # An engine that calls the Keras model was chosen because the graph does not agree.
    folded = chosen if chosen.graph is None else replace(chosen, engine="folded")
    opened = {
        "chosen": open_engine(chosen, threads()),
        "folded": open_engine(folded, threads()),
    }
    rates: dict[str, list[Rate]] = {name: [] for name in opened}
    for number in range(rounds):
        for name in turns(list(opened), number):
            rates[name].append(measure_rate(opened[name], images, seconds))
    found = [open_engine(encoder, threads())(images)[0] for encoder in built]
    return Measured(
        engines=tuple(encoder.engine for encoder in built),
        agreement=max(violation(features, expected) for features in found),
        chosen=_median(rates["chosen"]),
        folded=_median(rates["folded"]),
    )


def _median(rates: list[Rate]) -> Rate:
    return Rate(
        images=statistics.median(rate.images for rate in rates),
        by_cpu=statistics.median(rate.by_cpu for rate in rates),
    )


def _build(model: Any, form: str, root: Path) -> Encoder:
    path = root / ("encoder.keras" if form == "keras" else "exported")
    if form == "keras":
        model.save(path)
    else:
        model.export(path, verbose=False)
    return build(EncoderSpec(model=str(path), folder=".", batch_size=BATCH), threads())


def measure_rate(engine: OpenEngine, images: np.ndarray, seconds: float) -> Rate:
    """Run as many batches at a time as the engine can run."""

    def call(until: float) -> int:
        done = 0
        while done == 0 or time.perf_counter() < until:
            engine(images)
            done += len(images)
        return done

    with ThreadPoolExecutor(engine.concurrency) as pool:
        # Warm up.
        list(pool.map(call, [0.0] * engine.concurrency))
        began, worked = time.perf_counter(), time.process_time()
        done = sum(pool.map(call, [began + seconds] * engine.concurrency))
        return Rate(
            images=done / (time.perf_counter() - began),
            by_cpu=done / (time.process_time() - worked),
        )


def line(name: str, measured: Measured) -> str:
    """Lay out a row."""
    chosen, folded = measured.chosen, measured.folded
    return (
        f"{name:24} {', '.join(measured.engines):22} {measured.agreement:9.3f} "
        f"{chosen.images:9.1f} {folded.images:9.1f} {chosen.images / folded.images:6.2f} "
        f"{chosen.by_cpu / folded.by_cpu:7.2f}"
    )


def main() -> None:
    """Measure, and print the table."""
    known = encoders()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", help=f"of: {', '.join(known)}")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--only {','.join(unknown)}: there are {', '.join(known)}")
    print(described())
    print(
        f"{'encoder':24} {'engine: .keras, export':22} {'agreement':>9} {'chosen':>9} "
        f"{'folded':>9} {'ratio':>6} {'by CPU':>7}"
    )
    has_hub = importlib.util.find_spec("keras_hub") is not None
    for name in names:
        if name in HUB and not has_hub:
            print(f"{name:24} skipped: keras-hub is not installed", flush=True)
            continue
        keras.utils.set_random_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            model = known[name](given.side)
            print(line(name, measure(model, Path(folder), given.rounds, given.seconds)), flush=True)
        keras.backend.clear_session()


if __name__ == "__main__":
    sys.exit(main())
