# SPDX-License-Identifier: Apache-2.0
"""Follow the channels and the pixels of images through a program of PyTorch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ray_embed.core.arrays import Array
from ray_embed.encoders.rescaling import Rescaling, measure_rescaling

# --- channel axes --------------------------------------------------------------------------------

# Operators whose channels are axis 1, and the last axis.
_FIRST = {
    *("conv1d", "conv2d", "conv3d", "convolution", "batch_norm", "_native_batch_norm_legit"),
    *("group_norm", "instance_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
    *("adaptive_max_pool2d", "pixel_shuffle", "pixel_unshuffle", "conv_transpose2d"),
    *("_native_batch_norm_legit_no_training", "upsample_bilinear2d", "upsample_nearest2d"),
}
_LAST = {"linear", "layer_norm", "rms_norm", "embedding", "scaled_dot_product_attention"}


def find_axes(program: Any) -> list[int | None]:
    """Return the channel axis of each output of a program, None if it cannot be followed."""
    axes: dict[Any, int | None] = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            axes[node] = _find_axis(node, axes)
    (outputs,) = next(node for node in program.graph.nodes if node.op == "output").args
    return [axes.get(node) for node in outputs]


def _find_axis(node: Any, axes: dict[Any, int | None]) -> int | None:
    name, shape = _name_of(node), _shape_of(node)
    if shape is None:
        return None
    if name in _FIRST and len(shape) > 2:
        return 1
    if name in _LAST:
        return len(shape) - 1
    inputs = [each for each in node.all_input_nodes if axes.get(each) is not None]
    if not inputs:
        return None
    first = inputs[0]
    axis, before = axes[first], _shape_of(first)
    if axis is None or before is None:
        return None
    if name == "permute":
        order: list[int] = [place % len(before) for place in node.args[1]]
        return order.index(axis)
    if name == "transpose":
        places: list[int] = [place % len(before) for place in node.args[1:3]]
        return places[1 - places.index(axis)] if axis in places else axis
    if len(shape) == len(before):
        # Operators on single values, sums of branches, and reductions that keep their axes.
        return axis
    return _keep_axis(axis, before, shape)


def _keep_axis(axis: int, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Return the axis with the same length at the same place in memory, if there is one."""
    for place, length in enumerate(after):
        same_start = math.prod(before[:axis]) == math.prod(after[:place])
        same_end = math.prod(before[axis + 1 :]) == math.prod(after[place + 1 :])
        if length == before[axis] and (same_start or same_end):
            return place
    return None


def _shape_of(node: Any) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _name_of(node: Any) -> str:
    """Return the name of an operator without its namespace and overload."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet).rpartition(".")[2] if packet else str(getattr(node.target, "__name__", ""))


# --- pixels --------------------------------------------------------------------------------------

_ARITHMETIC = {"add", "sub", "mul", "div", "neg", "rsub"}
_NORMALIZATION = {"batch_norm", "_native_batch_norm_legit_no_training"}
_OTHERS = {
    *("permute", "transpose", "clone", "contiguous", "to", "_to_copy", "clamp", "round", "floor"),
    *("view", "reshape", "flatten", "unsqueeze", "squeeze", "pad", "constant_pad_nd", "select"),
    *("slice", "index", "cat", "stack", "flip", "unbind", "split", "getitem", "expand", "repeat"),
    *("upsample_bilinear2d", "upsample_nearest2d", "_assert_tensor_metadata", "movedim", "alias"),
    *("reflection_pad2d", "replication_pad2d", "pixel_unshuffle", "type_as", "chunk", "detach"),
}
_FOLLOWED = _ARITHMETIC | _NORMALIZATION | _OTHERS


def find_rescaling(
    program: Any, shape: Sequence[int], dtype: str, prepare: Callable[[Array], Array]
) -> Rescaling:
    """Return how a program rescales its input before the first layer with weights.

    Args:
        program: from images to features.
        shape: (N, H, W, C) of its images.
        dtype: the type of the model's own input.
        prepare: the preprocessing before the program.
    """
    followed, ends = _follow(program)
    if not ends:
        return Rescaling(dtype=dtype, expects_levels="int" in dtype)

    def blank(level: float) -> list[Array]:
        pixels = np.array(prepare(np.full(tuple(shape), level, np.float32)))
        recorder = _Recorder(program, ends)
        with torch.inference_mode():
            recorder.run_program(torch.from_numpy(pixels))
        return [recorder.seen[node].double().numpy() for node in ends]

    names = [_name_of(node) for node in followed]
    return measure_rescaling(
        blank,
        channels=shape[-1],
        dtype=dtype,
        layers=tuple(dict.fromkeys(n for n in names if n in _ARITHMETIC | _NORMALIZATION)),
        # In a network's own normalization, the learned offset may have any value.
        is_learned=any(name in _NORMALIZATION for name in names),
    )


class _Done(Exception):  # noqa: N818 - it ends a run of a program
    """All wanted values are there."""


class _Recorder(torch.fx.Interpreter):  # type: ignore[misc]
    """Runs a program until some of its values are computed."""

    def __init__(self, program: Any, wanted: Sequence[Any]) -> None:
        super().__init__(program.graph_module)
        self._program, self._wanted = program, set(wanted)
        self.seen: dict[Any, Any] = {}

    def run_program(self, images: Any) -> None:
        """Run the program on images."""
        signature, program = self._program.graph_signature, self._program
        tensors = {**program.constants, **program.state_dict}
        named = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        inputs = [node.name for node in program.graph.nodes if node.op == "placeholder"]
        try:
            self.run(*(tensors[named[name]] if name in named else images for name in inputs))
        except _Done:
            return

    def run_node(self, n: Any) -> Any:
        """Compute one value."""
        value = super().run_node(n)
        if n in self._wanted:
            self.seen[n] = value
            if len(self.seen) == len(self._wanted):
                raise _Done
        return value


def _follow(program: Any) -> tuple[list[Any], list[Any]]:
    """Return the nodes that rescale or move pixels, and the values where these nodes end."""
    user_inputs = set(program.graph_signature.user_inputs)
    pixels = {node for node in program.graph.nodes if node.name in user_inputs}
    constant = {n for n in program.graph.nodes if n.op in ("placeholder", "get_attr")} - pixels
    followed: list[Any] = []
    ends: dict[Any, None] = {}
    for node in program.graph.nodes:
        inputs = node.all_input_nodes
        if node.op != "call_function":
            ends |= dict.fromkeys(each for each in inputs if each in pixels)
        elif all(each in constant for each in inputs):
            constant.add(node)
        else:
            from_pixels = [each for each in inputs if each in pixels]
            others = [each for each in inputs if each not in pixels and each not in constant]
            if from_pixels and not others and _name_of(node) in _FOLLOWED:
                followed.append(node)
                pixels.add(node)
            else:
                ends |= dict.fromkeys(from_pixels)
    return followed, [node for node in ends if _shape_of(node) is not None]
