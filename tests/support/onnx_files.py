# SPDX-License-Identifier: Apache-2.0
"""Small ONNX files with weights, and what onnxruntime itself computes with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SIDES = (16, 20)
# The tensors of `conv_nodes`: maps after each convolution, and a vector.
FIRST, MAPS, VECTOR = "first", "maps", "vector"


def random_weights(seed: int = 0, dtype: str = "float32", channels: int = 3) -> dict[str, Any]:
    """Return the weights of `conv_nodes`."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (6, channels, 3, 3), "b1": (6,), "w2": (8, 6, 3, 3)}
    return {name: random.normal(0, 0.3, shape).astype(dtype) for name, shape in shapes.items()}


def conv_nodes(images: str = "images") -> list[Any]:
    """Return two convolutions with activations, and the average of their maps."""
    make = helper.make_node
    return [
        make("Conv", [images, "w1", "b1"], ["conv1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        make("Relu", ["conv1"], [FIRST]),
        make("Conv", [FIRST, "w2"], ["conv2"], pads=[1, 1, 1, 1]),
        make("LeakyRelu", ["conv2"], [MAPS]),
        make("GlobalAveragePool", [MAPS], ["pooled"]),
        make("Flatten", ["pooled"], [VECTOR]),
    ]


def save_onnx(
    path: Path,
    nodes: Sequence[Any] | None = None,
    outputs: Sequence[str] = (VECTOR,),
    weights: dict[str, Any] | None = None,
    *,
    shape: Sequence[Any] = ("N", 3, *SIDES),
    dtype: int = TensorProto.FLOAT,
    inputs: Sequence[Any] = (),
    opset: int = 17,
    domains: Sequence[str] = (),
    metadata: dict[str, str] | None = None,
    external: str | None = None,
) -> Path:
    """Write an ONNX file; by default, of the convolutions.

    Args:
        path: the file.
        nodes: the nodes of its graph.
        outputs: the tensors that the graph returns.
        weights: the constants of the graph.
        shape: the shape of its input, which is called `images`.
        dtype: the type of that input.
        inputs: further inputs.
        opset: the version of the operators.
        domains: further domains of operators.
        metadata: entries of the file.
        external: the name of the file beside it for the weights, or None for weights inside.
    """
    weights = random_weights() if weights is None else weights
    graph = helper.make_graph(
        conv_nodes() if nodes is None else nodes,
        "encoder",
        [helper.make_tensor_value_info("images", dtype, shape), *inputs],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    # onnx writes versions that onnxruntime does not read yet.
    model = helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid("", opset),
            *(helper.make_opsetid(domain, 1) for domain in domains),
        ],
        ir_version=8,
    )
    if metadata:
        helper.set_model_props(model, metadata)
    if external is not None:
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def call_onnxruntime(path: Path, images: np.ndarray, *names: str) -> list[np.ndarray]:
    """Return tensors of a file for a batch in the layout of its input, without the package."""
    model = onnx.load(path)
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in names if name not in known
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(list(names), {"images": images})


def channels_first(images: np.ndarray) -> np.ndarray:
    """Return images (N, H, W, C) as (N, C, H, W)."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
