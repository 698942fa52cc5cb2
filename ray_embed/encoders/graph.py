# SPDX-License-Identifier: Apache-2.0
"""Fold the encoder into one TensorFlow graph whose variables are constants."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_embed.encoders.features import Encode
from ray_embed.encoders.known_architectures import advise
from ray_embed.encoders.rescaling import Rescaling, find_rescaling
from ray_embed.encoders.spec import Encoder


@dataclass(frozen=True, kw_only=True)
class FoldedGraph:
    """A serialized GraphDef whose variables are constants, and what is known about it.

    Attributes:
        architecture: a digest without the weights.
        content: a digest with the weights.
    """

    graph: bytes
    input_name: str
    output_names: tuple[str, ...]
    architecture: str
    content: str
    rescaling: Rescaling
    advice: str


# Traces a function for one batch shape and the type of the model's own input.
Trace = Callable[[Encode, tuple[int, ...], str], Any]


def trace(encode: Encode, batch_shape: tuple[int, ...], dtype: str) -> Any:
    """Return the function as a TensorFlow function, without what its outputs do not need.

    Args:
        encode: the function from images to features.
        batch_shape: (N, H, W, C), or (N,) for the contents of files.
        dtype: the type of the model's own input.

    Raises:
        Exception: whatever TensorFlow raises for a function that cannot be traced.
    """
    import tensorflow as tf

    kind = tf.string if dtype == "string" else tf.float32
    # tf.function would keep nodes with side effects: a sampling layer that no output needs changes
    # the state of its random generator, which cannot be a constant.
    traced = tf.compat.v1.wrap_function(encode, [tf.TensorSpec(batch_shape, kind, name="images")])
    return traced.prune(traced.inputs[0], traced.outputs)


def fold_encoder(
    draft: Encoder, encode: Encode, dtype: str, trace: Trace = trace
) -> tuple[Encoder, list[str]]:
    """Return the encoder with its graph, and a warning if it cannot be folded into one.

    Without a graph, the type of its input, `dtype`, is the only clue to which pixels it expects.
    """
    batch = draft.spec.batch_size
    shape = (batch,) if dtype == "string" else (batch, *draft.image_shape)
    try:
        folded = fold(encode, shape, dtype, trace)
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        rescaling = Rescaling(dtype=dtype, expects_levels="int" in dtype)
        draft = replace(draft, graph=None, architecture=_model_digest(draft), rescaling=rescaling)
        return draft, [f"the model cannot be folded into a graph ({reason[0][:200]})"]
    encoder = replace(
        draft,
        graph=folded.graph,
        input_name=folded.input_name,
        output_names=folded.output_names,
        architecture=folded.architecture,
        # This covers all constants, including those that Keras does not count as weights.
        weights_digest=folded.content,
        rescaling=folded.rescaling,
        advice=folded.advice,
    )
    return encoder, []


def _model_digest(draft: Encoder) -> str:
    outputs = [(o.layer, o.pool, o.dimension) for o in draft.outputs]
    shapes = [(value.shape, str(value.dtype)) for value in draft.weights]
    return hashlib.sha256(repr((draft.spec.model_name, outputs, shapes)).encode()).hexdigest()


def fold(
    encode: Encode, batch_shape: tuple[int, ...], dtype: str, trace: Trace = trace
) -> FoldedGraph:
    """Trace the function for one batch shape and fold its variables to constants.

    The graph ends at the last requested layer: nodes that no output needs are left out.

    Args:
        encode: the function from images to features.
        batch_shape: (N, H, W, C), or (N,) for the contents of files.
        dtype: the type of the model's own input.
        trace: traces the function.

    Raises:
        Exception: whatever TensorFlow raises for a function that cannot be traced or folded.
    """
    frozen = _freeze(trace(encode, batch_shape, dtype))
    graph = frozen.graph.as_graph_def()
    _refuse_python(graph)
    input_name = frozen.inputs[0].name
    outputs = tuple(tensor.name for tensor in frozen.outputs)
    rescaling, advice = Rescaling(dtype=dtype), ""
    # An encoder that decodes files has no pixels as its input.
    if dtype != "string":
        rescaling = find_rescaling(graph, input_name, outputs, dtype)
        advice = advise(graph)
    return FoldedGraph(
        graph=graph.SerializeToString(deterministic=True),
        input_name=input_name,
        output_names=outputs,
        architecture=_digest(graph, outputs, weights=False),
        content=_digest(graph, outputs, weights=True),
        rescaling=rescaling,
        advice=advice,
    )


def _freeze(traced: Any) -> Any:
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    return convert_variables_to_constants_v2(traced)


def _refuse_python(graph: Any) -> None:
    """Refuse a graph that calls Python functions, which only this process has."""
    functions = [node for function in graph.library.function for node in function.node_def]
    if any("PyFunc" in node.op for node in (*graph.node, *functions)):
        raise ValueError("it calls Python by tf.py_function or tf.numpy_function")


# --- digests -------------------------------------------------------------------------------------


def _digest(graph: Any, outputs: tuple[str, ...], *, weights: bool) -> str:
    """Return a Merkle hash of what the outputs compute, independent of node names and order.

    Without `weights`, float arrays are hashed by dtype and shape only; everything else is hashed by
    value.
    """
    nodes = {node.name: node for node in graph.node}
    known: dict[str, bytes] = {}
    loops: list[str] = []
    ends = [_node_of(name) for name in outputs]
    _hash_below(ends, nodes, known, loops, weights)
    parts = [known[name] for name in ends]
    # Hashing what a loop passes to its next iteration may add more loops to the list.
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
    """Add the hashes of nodes, and of everything that they depend on, to `known`.

    Loops are cut at their NextIteration nodes, which are appended to `loops`.
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
    digest = hashlib.sha256(node.op.encode())
    for part in inputs:
        digest.update(part)
    for key in sorted(node.attr):
        value = node.attr[key]
        if key.startswith("_"):
            continue
        digest.update(key.encode())
        if value.HasField("func"):
            # The name ends in a counter that is specific to the process.
            digest.update(value.func.name.rstrip("0123456789").encode())
        elif key == "value" and node.op == "Const":
            _hash_constant(digest, value.tensor, weights)
        else:
            digest.update(value.SerializeToString(deterministic=True))
    return digest.digest()


def _hash_constant(digest: "hashlib._Hash", tensor: Any, weights: bool) -> None:
    import tensorflow as tf

    array = tf.make_ndarray(tensor)
    digest.update(f"{array.dtype}{array.shape}".encode())
    if not weights and array.ndim > 0 and array.dtype.kind == "f":
        return
    if array.dtype.kind == "O":
        digest.update(repr(array.tolist()).encode())
    else:
        digest.update(np.ascontiguousarray(array).data)
