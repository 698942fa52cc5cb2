# SPDX-License-Identifier: Apache-2.0
"""Find the channel axis of each layer's output, by following it through every operation.

TensorFlow reports each operation of an eager call. Convolutions and pooling operations state where
their channels are; transpositions and reshapes move them; most other operations keep them in place.
This works for layers without a `data_format`, and for code between layers. A SavedModel's signature
is a single operation, so its graph is read instead.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ray_embed.encoders.loaded_model import LoadedModel
from ray_embed.encoders.operation_axes import (
    CONVOLUTIONS,
    Axis,
    Operation,
    as_text,
    output_axes,
)

_WITH_CHANNEL_AXIS = ("BatchNormalization", "GroupNormalization", "Concatenate")


@dataclass
class ChannelAxes:
    """The channel axis of every tensor of one call.

    Attributes:
        images: the batch to call the model with.
        channels_first: whether any feature map of the call has its channels in axis 1.
        mismatch: describes the first convolution if it treats the wrong axis as the channels;
            otherwise empty.
    """

    images: Any
    channels_first: bool = False
    mismatch: str = ""
    _axes: dict[int, int] = field(default_factory=dict)
    _latest: dict[int, int] = field(default_factory=dict)
    _convolved: bool = False

    def get(self, value: Any) -> Axis:
        """Return the channel axis of a tensor of the call, or None if it cannot be known."""
        return self._axes.get(getattr(value, "_id", -1))

    def guess(self, rank: int) -> int:
        """Return the channel axis of the latest layer of this rank, or the last axis."""
        return self._latest.get(rank, rank - 1)

    def watch(self, layer: Any, output: Any) -> None:
        """Use what a layer declares if its operations did not show the axis of its output."""
        rank = getattr(getattr(output, "shape", None), "rank", None)
        if rank is None or rank < 3:
            return
        if self.get(output) is None and (axis := _declared_axis(layer, rank)) is not None:
            self.set(output, axis)
        if (known := self.get(output)) is not None:
            self._latest[rank] = known

    def set(self, tensor: Any, axis: int) -> None:
        """Record the channel axis of a tensor."""
        rank = tensor.shape.rank
        self._axes[tensor._id] = axis
        # Token sequences do not count, because mixer models transpose them temporarily.
        self.channels_first |= bool(rank) and rank > 3 and axis == 1

    def record(self, kind: Any, inputs: Any, attributes: Any, outputs: Any) -> None:
        """Record the axes of an operation's outputs."""
        pairs = dict(zip(attributes[::2], attributes[1::2], strict=False)) if attributes else {}
        operation = Operation(
            kind=as_text(kind),
            attributes=pairs.get,
            inputs=inputs,
            outputs=outputs or (),
            axes=tuple(self.get(value) for value in inputs),
            value=_constant_value,
        )
        self._check_convolution(operation)
        for tensor, axis in zip(operation.outputs, output_axes(operation), strict=False):
            if axis is not None:
                self.set(tensor, axis)

    def _check_convolution(self, operation: Operation) -> None:
        """Compare the first convolution with the channel axis of the images."""
        if self._convolved or operation.kind not in CONVOLUTIONS:
            return
        number = CONVOLUTIONS[operation.kind]
        actual, shape = operation.axes[number], operation.shape(number)
        if actual is None or shape is None:
            return
        self._convolved = True
        assumed = 1 if operation.layout.startswith("NC") else len(shape) - 1
        if assumed != actual:
            self.mismatch = f"its first convolution takes axis {assumed} for the channels"


@contextlib.contextmanager
def track_channels(images: Any) -> Iterator[ChannelAxes]:
    """Record the channel axes of everything that is called inside the ``with`` block.

    Args:
        images: (N, H, W, C).
    """
    import tensorflow as tf
    from tensorflow.python.framework import op_callbacks

    channels = ChannelAxes(tf.convert_to_tensor(images))
    channels.set(channels.images, 3)

    def callback(
        kind: Any,
        inputs: Any,
        attributes: Any,
        outputs: Any,
        op_name: Any = None,
        graph: Any = None,
    ) -> None:
        # An operation that cannot be read must not stop the encoder; its axis is then unknown.
        with contextlib.suppress(Exception):
            channels.record(kind, inputs, attributes, outputs)

    op_callbacks.add_op_callback(callback)
    try:
        yield channels
    finally:
        op_callbacks.remove_op_callback(callback)


def find_channel_axes(
    loaded: LoadedModel, values: dict[str, Any], channels: ChannelAxes
) -> tuple[dict[str, int], list[str]]:
    """Return each layer's channel axis, -1 if it is the last one, and notes on the other cases.

    Args:
        loaded: the model.
        values: the outputs of the layers, by name.
        channels: the channel axes of the same call.
    """
    known = {name: (channels.get(value), channels.channels_first) for name, value in values.items()}
    if loaded.signature is not None and any(value.shape.rank > 2 for value in values.values()):
        known = _signature_axes(loaded.signature, loaded.channels_first)
    why = "as for the nearest layer before it"
    return describe_axes(values, known, lambda _, rank: (channels.guess(rank), why))


def describe_axes(
    values: dict[str, Any],
    known: dict[str, tuple[Axis, bool]],
    guess: Callable[[str, int], tuple[int, str]],
) -> tuple[dict[str, int], list[str]]:
    """Return each layer's channel axis, -1 if it is the last one, and notes on the other cases.

    Args:
        values: the outputs of the layers, by name.
        known: the channel axis of each layer or None, and whether any feature map of the encoder
            has its channels first.
        guess: returns the channel axis to take if it cannot be known, for the name and the rank of
            a layer, and why.
    """
    axes, notes = {}, []
    for name, value in values.items():
        axis, mixed = known.get(name, (None, False))
        last = len(value.shape) - 1
        where = f"layer {name}, of shape ({', '.join(('N', *map(str, value.shape[1:])))}): "
        if last < 2:
            axis = last
        elif axis is None and mixed:
            axis, why = guess(name, len(value.shape))
            notes.append(f"{where}its channel axis cannot be known; axis {axis} was taken, {why}")
        elif axis not in (None, last):
            notes.append(
                f"{where}its channels are axis {axis} (channels_first), and it is pooled over the "
                "other axes"
            )
        axes[name] = -1 if axis in (None, last) else axis
    return axes, notes


def layout_notes(channels_first: bool, shape: tuple[int, int, int]) -> list[str]:
    """Return a note if images of `shape`, (H, W, C), are transposed for the model."""
    if not channels_first:
        return []
    height, width, channels = shape
    return [
        f"the encoder takes (N, {channels}, {height}, {width}), channels first: images are "
        "transposed to that"
    ]


def _signature_axes(signature: Any, channels_first: bool) -> dict[str, tuple[Axis, bool]]:
    """Return the channel axis of each output of a signature, by name.

    Args:
        signature: a concrete function of one input.
        channels_first: whether the input is (N, C, H, W).

    Returns:
        For each output, its axis or None, and whether any feature map of the graph has its channels
        first. A graph that changes its variables cannot be followed: its axes are None, and its
        feature maps are assumed to possibly have their channels first.
    """
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    names = sorted(signature.structured_outputs)
    # This inlines functions, so that one pass over the graph sees every operation.
    try:
        frozen = convert_variables_to_constants_v2(signature)
    except Exception:
        return dict.fromkeys(names, (None, True))
    axes = _graph_axes(frozen, channels_first)
    first = any(
        axis == 1 and (frozen.graph.get_tensor_by_name(name).shape.rank or 0) > 3
        for name, axis in axes.items()
    )
    found = [(axes.get(output.name), first) for output in frozen.outputs]
    return dict(zip(names, found, strict=True))


def _graph_axes(frozen: Any, channels_first: bool) -> dict[str, Axis]:
    """Return the channel axis of each tensor of a graph, by name."""
    (images,) = frozen.inputs
    axes: dict[str, Axis] = {images.name: 1 if channels_first else 3}
    for node in frozen.graph.get_operations():
        if node.type == "Placeholder":
            continue
        operation = Operation(
            kind=node.type,
            attributes=_attributes_of(node),
            inputs=node.inputs,
            outputs=node.outputs,
            axes=tuple(axes.get(value.name) for value in node.inputs),
            value=_constant_value,
        )
        with contextlib.suppress(Exception):
            for tensor, axis in zip(node.outputs, output_axes(operation), strict=False):
                axes[tensor.name] = axis
    return axes


def _declared_axis(layer: Any, rank: int) -> Axis:
    """Return the channel axis that a layer's options declare, or None."""
    match getattr(layer, "data_format", None):
        case "channels_first":
            return 1
        case "channels_last":
            return rank - 1
    axis = getattr(layer, "axis", None)
    if isinstance(axis, (list, tuple)) and len(axis) == 1:
        axis = axis[0]
    if type(layer).__name__ in _WITH_CHANNEL_AXIS and isinstance(axis, int):
        return axis % rank
    return None


def _constant_value(tensor: Any) -> Any:
    if hasattr(tensor, "numpy"):
        return tensor.numpy()
    import tensorflow as tf

    return tf.get_static_value(tensor)


def _attributes_of(node: Any) -> Callable[[str], Any]:
    def get(name: str) -> Any:
        try:
            return node.get_attr(name)
        except ValueError:
            return None

    return get
