# SPDX-License-Identifier: Apache-2.0
"""The function from images to features: preprocessing, the model, the layers, and the pooling."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ray_embed.core import user_code
from ray_embed.encoders import pooling
from ray_embed.encoders.layers import Recorded, Watch, is_feature, record_layers, select_layer
from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.spec import EncoderSpec, Output
from ray_embed.errors import InputError

# From (N, H, W, C) float32 images to one (N, D) float32 tensor per output.
Encode = Callable[[Any], list[Any]]


def load_preprocessing(spec: EncoderSpec) -> Callable[[Any], Any]:
    """Return the user's function for float32 batches, or the identity if there is none.

    Raises:
        InputError: the function cannot be imported.
    """
    if spec.preprocess is None:
        return lambda images: images
    import tensorflow as tf

    function = user_code.resolve_callable(spec.preprocess, "--preprocess")

    def prepare(images: Any) -> Any:
        # The function may work in place, so each call receives a copy.
        copy = np.array(images) if tf.executing_eagerly() else images
        return tf.cast(tf.convert_to_tensor(function(copy)), tf.float32)

    return prepare


def run_recorded(
    loaded: LoadedModel, images: Any, watch: Watch | None = None
) -> tuple[Any, Recorded]:
    """Call the model; return its output, and the outputs of its layers by path."""
    with record_layers(watch) as recorded:
        output = loaded.call(images)
    if isinstance(output, dict):
        for name, value in output.items():
            recorded.setdefault(name, [value])
    return output, recorded


def layer_values(
    loaded: LoadedModel, spec: EncoderSpec, images: Any, watch: Watch | None = None
) -> dict[str, Any]:
    """Call the model; return the outputs of the requested layers by name.

    Args:
        loaded: the model.
        spec: the request, which names the layers. Without layers, the model's only output is
            returned.
        images: (N, H, W, C) float32.
        watch: called with each layer and its output.

    Raises:
        InputError: a layer has no usable output, or the model has several outputs and no layer
            was named.
    """
    output, recorded = run_recorded(loaded, images, watch)
    if spec.layers:
        return {name: select_layer(name, recorded) for name in spec.layers}
    outputs = _name_outputs(output, loaded.main_output)
    if len(outputs) > 1:
        raise _several_outputs(spec, outputs, recorded)
    value = next(iter(outputs.values()))
    if not is_feature(value):
        raise InputError(
            f"--model {spec.model_name}: its output is {getattr(value, 'shape', type(value))}; "
            "one float tensor of rank 2 to 4 is needed: name a layer with --layer"
        )
    return outputs


def _name_outputs(output: Any, main_output: str | None) -> dict[str, Any]:
    if isinstance(output, dict):
        return output if main_output is None else {main_output: output[main_output]}
    if isinstance(output, (list, tuple)):
        return {f"output {index}": value for index, value in enumerate(output)}
    return {"output": output}


def _several_outputs(spec: EncoderSpec, outputs: dict[str, Any], recorded: Recorded) -> InputError:
    layers = [
        path
        for path, calls in recorded.items()
        if len(calls) == 1 and any(calls[0] is value for value in outputs.values())
    ]
    return InputError(
        f"--model {spec.model_name}: it has {len(outputs)} outputs; choose one with --layer: "
        f"{', '.join(layers or list(recorded)[-10:])}"
    )


def pool_layers(values: dict[str, Any], outputs: tuple[Output, ...]) -> list[Any]:
    """Return the (N, D) float32 features of each output, pooled from its layer's output.

    The values are arrays or tensors of TensorFlow, and so are the features.
    """
    features = []
    for value, output in zip(values.values(), outputs, strict=True):
        pool = pooling.pool_array if isinstance(value, np.ndarray) else pooling.pool
        features.append(pool(value, output.pool, output.channel_axis))
    return features


def encoding_function(
    loaded: LoadedModel, spec: EncoderSpec, outputs: tuple[Output, ...]
) -> Encode:
    """Return the function from images to features."""
    prepare = load_preprocessing(spec)
    return lambda images: pool_layers(layer_values(loaded, spec, prepare(images)), outputs)
