# SPDX-License-Identifier: Apache-2.0
"""Build a model without weights from the JSON that `model.to_json()` of Keras 2 or 3 writes."""

from pathlib import Path
from typing import Any

from ray_embed.encoders.unsupported_formats import read_json
from ray_embed.errors import InputError


def is_model_json(path: Path) -> bool:
    """Return whether a file holds the JSON of a Keras model."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if not file.read(64).lstrip().startswith(b"{"):
            return False
    return {"class_name", "config"} <= read_json(path).keys()


def detect_keras_family(path: Path) -> str:
    """Return the Keras package that can read the file: `keras` or `tf_keras`."""
    content = read_json(path)
    # Only Keras 2 writes its version, and only Keras 3 writes the module of the model's class.
    return "tf_keras" if "keras_version" in content or "module" not in content else "keras"


def model_from_json(path: Path, custom_objects: dict[str, Any]) -> Any:
    """Return the model with its initial weights.

    Args:
        path: the file. It must not hold Python code, which Keras 2 would run.
        custom_objects: the classes and functions to use, by their names in the file.

    Raises:
        Exception: whatever Keras raises for layers that it does not know.
    """
    if detect_keras_family(path) == "tf_keras":
        import tf_keras

        text = path.read_text(encoding="utf-8")
        return tf_keras.models.model_from_json(text, custom_objects=custom_objects)
    import keras

    content = read_json(path)
    # The compile configuration may need classes of the training program.
    content.pop("compile_config", None)
    return keras.saving.deserialize_keras_object(
        content, custom_objects=custom_objects, safe_mode=True
    )


def refuse_without_weights(path: Path) -> None:
    """Refuse to use a model's JSON without ``--weights``.

    Raises:
        InputError: the file is the JSON of a model.
    """
    if is_model_json(path):
        raise InputError(
            f"--model {path}: it holds the model's layers without their weights; give them with "
            "--weights (or --weights random, as a baseline to compare with)"
        )
