# SPDX-License-Identifier: Apache-2.0
"""Support SavedModels that take the contents of image files and decode them in their graph."""

from typing import Any

from ray_embed.encoders.saved_model_graph import find_dependencies, node_key, reachable

_DECODERS = {
    *("DecodeJpeg", "DecodePng", "DecodeImage", "DecodeBmp", "DecodeGif"),
    *("DecodeAndCropJpeg", "DecodeWebP"),
}


def decodes_images(graph: Any, signature: Any) -> bool:
    """Return whether a signature decodes images. Other string inputs may be texts, for example.

    Args:
        graph: the meta graph.
        signature: the definition of the signature.
    """
    outputs = {node_key(tensor.name) for tensor in signature.outputs.values()}
    return bool(_DECODERS & reachable(outputs, find_dependencies(graph)))


def call_with_contents(function: Any, argument: str, contents: Any) -> Any:
    """Call a signature with the contents of a batch of files.

    A signature that takes a single file is called once per file. It may return a batch of one, or
    features without a batch.

    Args:
        function: the signature.
        argument: the name of its argument.
        contents: a batch of bytes.
    """
    import tensorflow as tf

    contents = tf.convert_to_tensor(contents, tf.string)
    if function.structured_input_signature[1][argument].shape.rank != 0:
        return function(**{argument: contents})

    def call(content: Any) -> Any:
        outputs = function(**{argument: content})
        return {name: _without_batch(value) for name, value in outputs.items()}

    outputs = {
        name: tf.TensorSpec(_shape_without_batch(spec.shape), spec.dtype)
        for name, spec in function.structured_outputs.items()
    }
    return tf.map_fn(call, contents, fn_output_signature=outputs)


def _shape_without_batch(shape: Any) -> Any:
    return shape[1:] if shape.rank and shape[0] in (1, None) else shape


def _without_batch(value: Any) -> Any:
    return value[0] if value.shape.rank and value.shape[0] in (1, None) else value
