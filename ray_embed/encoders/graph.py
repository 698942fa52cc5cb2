# SPDX-License-Identifier: Apache-2.0
"""The encoder as one function, and as one graph with its variables folded to constants."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_embed.core import user_code
from ray_embed.encoders import pooling
from ray_embed.encoders.families import advise
from ray_embed.encoders.layers import Recorded, Watch, is_feature, recording, select
from ray_embed.encoders.model_loading import Loaded
from ray_embed.encoders.rescaling import Rescaling, find_rescaling
from ray_embed.encoders.spec import EncoderSpec, Output
from ray_embed.errors import InputError

Features = list[Any]


def preprocessing(spec: EncoderSpec) -> Callable[[Any], Any]:
    """Give the user's function that is applied to a float32 batch, or one that changes nothing.

    Raises:
        InputError: it cannot be imported.
    """
    import tensorflow as tf

    if spec.preprocess is None:
        return lambda images: images
    function = user_code.resolve(spec.preprocess, "--preprocess")

    def prepare(images: Any) -> Any:
        # Each call gets an array of its own: a function may work in place.
        own = np.array(images) if tf.executing_eagerly() else images
        return tf.cast(tf.convert_to_tensor(function(own)), tf.float32)

    return prepare


def run_recorded(loaded: Loaded, images: Any, watch: Watch | None = None) -> tuple[Any, Recorded]:
    """Call the model; give its output and what each layer gave."""
    with recording(watch) as recorded:
        output = loaded.call(images)
    if isinstance(output, dict):
        for name, value in output.items():
            recorded.setdefault(name, [value])
    return output, recorded


def layer_values(
    loaded: Loaded, spec: EncoderSpec, images: Any, watch: Watch | None = None
) -> dict[str, Any]:
    """Call the model and give what the layers asked for give, by name.

    Args:
        loaded: the model.
        spec: names the layers.
        images: (N, H, W, C) float32.
        watch: called with each layer and its output.

    Raises:
        InputError: a layer that cannot be taken, or several outputs where none was named.
    """
    output, recorded = run_recorded(loaded, images, watch)
    if spec.layers:
        return {name: select(name, recorded) for name in spec.layers}
    if isinstance(output, dict):
        main = loaded.main_output
        outputs = output if main is None else {main: output[main]}
    elif isinstance(output, (list, tuple)):
        outputs = {f"output {at}": value for at, value in enumerate(output)}
    else:
        outputs = {"output": output}
    if len(outputs) > 1:
        same = [
            path
            for path, calls in recorded.items()
            if len(calls) == 1 and any(calls[0] is value for value in outputs.values())
        ]
        raise InputError(
            f"--model {spec.model_name}: it has {len(outputs)} outputs; say which with --layer: "
            f"{', '.join(same or list(recorded)[-10:])}"
        )
    name, value = next(iter(outputs.items()))
    if not is_feature(value):
        raise InputError(
            f"--model {spec.model_name}: its output is {getattr(value, 'shape', type(value))}; "
            "one float tensor of rank 2 to 4 is needed: name a layer with --layer"
        )
    return {name: value}


def function_of(
    loaded: Loaded, spec: EncoderSpec, outputs: tuple[Output, ...]
) -> Callable[[Any], Features]:
    """Give the function from (N, H, W, C) float32 images to one (N, D) float32 an output."""
    prepare = preprocessing(spec)

    def encode(images: Any) -> Features:
        values = layer_values(loaded, spec, prepare(images))
        pairs = zip(values.values(), outputs, strict=True)
        return [pooling.pool(value, output.pool, output.channel_axis) for value, output in pairs]

    return encode


@dataclass(frozen=True)
class FoldedGraph:
    """A serialized GraphDef whose variables are constants, and the names of its ends."""

    graph: bytes
    input_name: str
    output_names: tuple[str, ...]
    architecture: str
    content: str
    rescaling: Rescaling
    advice: str


def fold(
    encode: Callable[[Any], Features], batch_shape: tuple[int, ...], dtype: str
) -> FoldedGraph:
    """Trace the function for one batch shape and fold its variables to constants.

    What no output needs is not in the graph: it ends at the last layer asked for.

    Args:
        encode: from images to features.
        batch_shape: (N, H, W, C), or (N,) for the contents of files.
        dtype: the type of the model's own input.

    Raises:
        Exception: whatever TensorFlow raises for a function that cannot be traced or folded.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    takes_bytes = dtype == "string"
    images = tf.TensorSpec(batch_shape, tf.string if takes_bytes else tf.float32, name="images")
    # Not tf.function, whose graphs keep what has side effects: a sampling layer beside the layer
    # asked for changes the state of its random generator, which no constant can.
    traced = tf.compat.v1.wrap_function(encode, [images])
    needed = traced.prune(traced.inputs[0], traced.outputs)
    frozen = convert_variables_to_constants_v2(needed)
    graph = frozen.graph.as_graph_def()
    _refuse_python(graph)
    outputs = tuple(tensor.name for tensor in frozen.outputs)
    return FoldedGraph(
        graph.SerializeToString(deterministic=True),
        frozen.inputs[0].name,
        outputs,
        _digest(graph, outputs, weights=False),
        _digest(graph, outputs, weights=True),
        # What decodes files itself is given no pixels.
        Rescaling(dtype=dtype)
        if takes_bytes
        else find_rescaling(graph, frozen.inputs[0].name, outputs, dtype),
        "" if takes_bytes else advise(graph),
    )


def _refuse_python(graph: Any) -> None:
    """Refuse a graph that calls Python functions, which it finds in this process only."""
    functions = [node for function in graph.library.function for node in function.node_def]
    if any("PyFunc" in node.op for node in (*graph.node, *functions)):
        raise ValueError("it calls Python by tf.py_function or tf.numpy_function")


def _digest(graph: Any, outputs: tuple[str, ...], *, weights: bool) -> str:
    """Hash what the outputs compute, independent of node names and their order (a Merkle hash).

    Without `weights`, float constants that are no scalars count by their shape alone.
    """
    nodes = {node.name: node for node in graph.node}
    known: dict[str, bytes] = {}
    loops: list[str] = []
    ends = [_node_of(name) for name in outputs]
    _hash_below(ends, nodes, known, loops, weights)
    parts = [known[name] for name in ends]
    # Hashing what a loop hands to its next iteration may meet further loops.
    for name in loops:
        before = _node_of(nodes[name].input[0])
        _hash_below([before], nodes, known, loops, weights)
        parts.append(known[before])
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _hash_below(
    names: list[str],
    nodes: dict[str, Any],
    known: dict[str, bytes],
    loops: list[str],
    weights: bool,
) -> None:
    """Hash nodes and all that they depend on, into `known`.

    Loops are cut where they are closed, at their NextIteration nodes, which go into `loops`.
    """
    stack = list(names)
    while stack:
        name = stack[-1]
        if nodes[name].op == "NextIteration" and name not in known:
            known[name] = hashlib.sha256(f"NextIteration {len(loops)}".encode()).digest()
            loops.append(name)
        inputs = [_node_of(item) for item in nodes[name].input]
        missing = [item for item in inputs if item not in known]
        if missing and name not in known:
            stack.extend(missing)
            continue
        stack.pop()
        if name not in known:
            ports = [item.partition(":")[2].encode() for item in nodes[name].input]
            parts = [known[item] + port for item, port in zip(inputs, ports, strict=True)]
            known[name] = _node_digest(nodes[name], parts, weights)


def _node_of(name: str) -> str:
    return name.removeprefix("^").partition(":")[0]


def _node_digest(node: Any, inputs: list[bytes], weights: bool) -> bytes:
    import tensorflow as tf

    digest = hashlib.sha256(node.op.encode())
    for part in inputs:
        digest.update(part)
    for key in sorted(node.attr):
        value = node.attr[key]
        if key.startswith("_"):
            continue
        digest.update(key.encode())
        if value.HasField("func"):
            # The name ends in a counter of the process.
            digest.update(value.func.name.rstrip("0123456789").encode())
        elif key == "value" and node.op == "Const":
            array = tf.make_ndarray(value.tensor)
            digest.update(f"{array.dtype}{array.shape}".encode())
            if weights or array.ndim == 0 or array.dtype.kind != "f":
                content = array.tolist() if array.dtype.kind == "O" else np.ascontiguousarray(array)
                digest.update(
                    repr(content).encode() if isinstance(content, (list, bytes)) else content.data
                )
        else:
            digest.update(value.SerializeToString(deterministic=True))
    return digest.digest()
