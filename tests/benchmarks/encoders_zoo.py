# SPDX-License-Identifier: Apache-2.0
"""Feed the families of keras.applications in every form, and compare with plain Keras.

Each family (random weights) is saved as ``.keras``, as ``.h5``, exported as a SavedModel, and as
weights for its constructor. Each form gets the same picture files twice: with the defaults, and
with the preprocessing that is advised. The features must be those of a plain call on what Keras
itself loads, after the family's own ``preprocess_input``. A form that Keras itself cannot load is
named.

    python tests/benchmarks/encoders_zoo.py
    python tests/benchmarks/encoders_zoo.py --families MobileNetV2 --forms keras --side 32
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
from support.pictures import make_folder

from ray_embed.config import make_config
from ray_embed.encoders.build import build
from ray_embed.encoders.engines.choice import agree
from ray_embed.encoders.engines.registry import open_engine
from ray_embed.extraction import pixels
from ray_embed.extraction.prepare import make_encoder_spec
from ray_embed.images import decode
from ray_embed.planning import SplitPlan

# The family, and the module of its preprocess_input.
FAMILIES = {
    "ConvNeXtTiny": "convnext",
    "DenseNet121": "densenet",
    "EfficientNetB0": "efficientnet",
    "EfficientNetV2B0": "efficientnet_v2",
    "InceptionResNetV2": "inception_resnet_v2",
    "InceptionV3": "inception_v3",
    "MobileNet": "mobilenet",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3Large": "mobilenet_v3",
    "MobileNetV3Small": "mobilenet_v3",
    "NASNetMobile": "nasnet",
    "ResNet50": "resnet50",
    "ResNet50V2": "resnet_v2",
    "VGG16": "vgg16",
    "VGG19": "vgg19",
    "Xception": "xception",
}
FORMS = ("keras", "h5", "export", "weights")
_PICTURES = 4


def save(model: Any, form: str, root: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Save a model in a form; returns the options that name it."""
    if form == "export":
        model.export(root / "exported", verbose=False)
        return {"model": str(root / "exported")}
    if form == "weights":
        model.save_weights(root / "m.weights.h5")
        named = f"keras.applications:{arguments.pop('family')}"
        return {"model": named, "model_kwargs": arguments, "weights": str(root / "m.weights.h5")}
    model.save(root / f"m.{form}")
    return {"model": str(root / f"m.{form}")}


def keras_loads(path: str) -> bool:
    """Return whether Keras can load a model that it has saved."""
    try:
        keras.models.load_model(path)
    except Exception:
        return False
    return True


def embed(paths: list[str], side: int, options: dict[str, Any]) -> tuple[np.ndarray, str, str]:
    """Embed files as an actor does; returns features, engine, and the scale that was decided."""
    config = make_config({"sources": {"data": "."}, "engine": "tensorflow", **options})
    encoder = build(make_encoder_spec(config, None, _PICTURES))
    split = SplitPlan(
        ordinal=0,
        name="data",
        root="",
        label_type="string",
        extras=(),
        shard_size=_PICTURES,
        shards_per_file=1,
    )
    pixels.check(config, (split,), encoder)
    spec = pixels.make_pixel_spec(config, split, encoder)
    contents = [Path(path).read_bytes() for path in paths]
    (batch,) = decode.content_batches(contents, spec, _PICTURES, 1)
    (features,) = open_engine(encoder, 1)(batch.images)
    return features, spec.scale, encoder.advice


def compare(family: str, forms: list[str], side: int, root: Path) -> list[str]:
    """Compare a family in these forms with plain Keras; returns a line a form."""
    make_folder(root / "data", {"a": _PICTURES})
    dataset = keras.utils.image_dataset_from_directory(
        root / "data", image_size=(side, side), shuffle=False, verbose=False
    )
    loaded = np.concatenate([images.numpy() for images, _ in dataset])
    module = getattr(keras.applications, FAMILIES[family])
    arguments = {
        "weights": None,
        "include_top": False,
        "pooling": "avg",
        "input_shape": (side, side, 3),
    }
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, family)(**arguments)
    prepared = module.preprocess_input(loaded.copy())
    # Where it does nothing, the network rescales its input itself, and the defaults must do.
    rescales = np.array_equal(prepared, loaded)
    plain = model(prepared, training=False).numpy()
    usual = plain if rescales else model(loaded / 255, training=False).numpy()
    lines = []
    for form in forms:
        options = save(model, form, root, {"family": family, **arguments})
        if form in ("keras", "h5") and not keras_loads(options["model"]):
            lines.append(f"{family:18} {form:8} Keras itself cannot load what it has saved")
            continue
        found, scale, advice = embed(dataset.file_paths, side, options)
        default_is_right = agree([found], [usual])
        advised = advice.rpartition("--preprocess ")[2] if advice else ""
        if advised:
            found, _, _ = embed(dataset.file_paths, side, options | {"preprocess": advised})
        right = agree([found], [plain])
        difference = float(np.abs(found - plain).max() / np.abs(plain).max())
        lines.append(
            f"{family:18} {form:8} {scale:6} {advised or 'nothing':28} "
            f"{'as Keras' if right and default_is_right else 'DIFFERS':9} {difference:.1e}"
        )
    return lines


def main() -> int:
    """Print the table; returns 1 where features differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--side", type=int, default=75)
    given = parser.parse_args()
    print(f"{'family':18} {'form':8} {'scale':6} {'advised':28} {'features':9} largest difference")
    lines = []
    for family in given.families:
        with tempfile.TemporaryDirectory() as folder:
            found = compare(family, given.forms, given.side, Path(folder))
        keras.backend.clear_session()
        print("\n".join(found), flush=True)
        lines += found
    return int(any("DIFFERS" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
