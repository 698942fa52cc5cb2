# SPDX-License-Identifier: Apache-2.0
"""SavedModels that take the bytes of image files, and decode them in their own graph.

Such an input is a string, as is one of texts, of serialized examples or of base64. It is taken for
images only if nothing in the graph does anything else with it than to decode images.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ray_embed.core.arrays import Array

_DECODERS = {
    *("DecodeJpeg", "DecodePng", "DecodeImage", "DecodeBmp", "DecodeGif"),
    *("DecodeAndCropJpeg", "DecodeWebP"),
}
# Operations that hand a string on, look at its size or first bytes, or report an error with it.
_PASSING = {
    *("Identity", "IdentityN", "Reshape", "ExpandDims", "Squeeze", "Shape", "ShapeN", "Size"),
    *("Rank", "StridedSlice", "Slice", "Gather", "GatherV2", "Pack", "Unpack", "ConcatV2"),
    *("PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile", "If", "StatelessIf"),
    *("Case", "StatelessCase", "Switch", "Merge", "Enter", "Exit", "NextIteration"),
    *("TensorArrayScatterV3", "TensorArrayWriteV3", "TensorListFromTensor", "TensorListSetItem"),
    *("TensorListPushBack", "ExtractJpegShape", "Assert", "Substr", "StringLength", "Equal"),
    *("NotEqual", "PlaceholderWithDefault", "StopGradient", "EnsureShape"),
}


def foreign_operation(graph: Any, tensor: str) -> str | None:
    """Name what a graph does with a string input that has nothing to do with images.

    Args:
        graph: the meta graph.
        tensor: the name of the input.

    Returns:
        The operation, or a sentence part if no image is decoded; None if it takes images.
    """
    nodes = list(_using(graph, tensor.partition(":")[0]))
    for node in nodes:
        if node.op not in _DECODERS | _PASSING and _takes_strings(node):
            return f"uses {node.op}"
    if not any(node.op in _DECODERS for node in nodes):
        return "decodes no image"
    return None


def _using(graph: Any, start: str) -> Iterator[Any]:
    """Yield the nodes that depend on one, up to those that decode, and all of their functions'."""
    functions = {f.signature.name: f.node_def for f in graph.graph_def.library.function}
    consumers: dict[str, list[Any]] = {}
    for node in graph.graph_def.node:
        for name in node.input:
            consumers.setdefault(name.removeprefix("^").partition(":")[0], []).append(node)
    seen: set[str] = set()
    waiting = list(consumers.get(start, ()))
    called: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name in seen:
            continue
        seen.add(node.name)
        yield node
        if node.op not in _DECODERS:
            waiting += consumers.get(node.name, ())
        called |= _called(node)
    done: set[str] = set()
    while called - done:
        name = (called - done).pop()
        done.add(name)
        for node in functions.get(name, ()):
            yield node
            called |= _called(node)


def _called(node: Any) -> set[str]:
    """Return the names of the functions that a node may call."""
    names = {value.func.name for value in node.attr.values()}
    names |= {func.name for value in node.attr.values() for func in value.list.func}
    return {node.op, *names} - {""}


def _takes_strings(node: Any) -> bool:
    from tensorflow.core.framework import types_pb2
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(node.op)
    if definition is None:
        # A function, whose nodes are looked at.
        return False
    if node.op == "LookupTableFindV2":
        # Its other string is what it gives for an unknown number.
        return bool(node.attr["Tin"].type == types_pb2.DT_STRING)
    for argument in definition.input_arg:
        types = [argument.type]
        if argument.type_attr:
            types = [node.attr[argument.type_attr].type]
        elif argument.type_list_attr:
            types = node.attr[argument.type_list_attr].list.type
        if types_pb2.DT_STRING in types:
            return True
    return False


def call_with_contents(function: Any, argument: str, contents: Any) -> Any:
    """Call a signature with the contents of a batch of files.

    One that takes a single file is called for each of them; what it then gives may be a batch of
    one, or features without a batch.

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


def encoded_noise(count: int) -> Array:
    """Make the bytes of JPEG files of noise, of several sizes, always the same."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    return _as_objects(
        tf.io.encode_jpeg(random.integers(0, 256, (48 + 8 * at, 64, 3), np.uint8)).numpy()
        for at in range(count)
    )


def blank_images(count: int) -> Array:
    """Make the bytes of JPEG files that are black."""
    return _as_objects([_black()] * count)


@functools.cache
def _black() -> bytes:
    import tensorflow as tf

    content: bytes = tf.io.encode_jpeg(np.zeros((64, 64, 3), np.uint8)).numpy()
    return content


def _as_objects(contents: Iterable[bytes]) -> Array:
    # NumPy's own type for bytes drops zeros at the end.
    values = list(contents)
    found = np.empty(len(values), object)
    found[:] = values
    return found
