# SPDX-License-Identifier: Apache-2.0
"""Keras and TensorFlow: model files, SavedModels, and what the user's callables return."""

from pathlib import Path

from ray_embed.config import is_callable_reference
from ray_embed.core.model_names import KERAS_HUB, names_model
from ray_embed.encoders.engines import folded, function, openvino, plain, xla
from ray_embed.encoders.frameworks.base import BuildEncoder, Framework, Shapes
from ray_embed.encoders.keras_hub_import import check_keras_hub
from ray_embed.encoders.model_json import refuse_without_weights
from ray_embed.encoders.spec import EncoderSpec
from ray_embed.encoders.unsupported_formats import refuse_unsupported_format
from ray_embed.errors import InputError


def _check(spec: EncoderSpec) -> None:
    if not isinstance(spec.model, str) or is_callable_reference(spec.model):
        return
    if names_model(spec.model):
        if spec.model.startswith(KERAS_HUB):
            check_keras_hub(spec.model)
        return
    path = Path(spec.model)
    refuse_unsupported_format(path)
    if not path.exists():
        raise InputError(
            f"--model {path}: no such file; expected a .keras, .h5, .onnx or .pt2 file, a "
            "SavedModel folder, keras:NAME, keras_hub:PRESET, or module:callable"
        )
    if spec.weights is None:
        refuse_without_weights(path)


def _start_building() -> BuildEncoder:
    from ray_embed.encoders.keras_build import KerasBuilder

    return KerasBuilder(FRAMEWORK).build


def _list_shapes(spec: EncoderSpec, local_spec: EncoderSpec) -> tuple[Shapes, Shapes]:
    from ray_embed.encoders.keras_layer_shapes import list_shapes

    return list_shapes(spec, local_spec)


def has_gpu() -> bool:
    """Return whether TensorFlow has a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


FRAMEWORK = Framework(
    name="keras",
    engines=(openvino.ENGINE, xla.ENGINE, folded.ENGINE, function.ENGINE, plain.ENGINE),
    graph_file="graph.pb",
    # What nothing else recognizes.
    matches=lambda spec: True,
    check=_check,
    start_building=_start_building,
    list_shapes=_list_shapes,
    has_gpu=has_gpu,
    uses_tensorflow=True,
)
