# SPDX-License-Identifier: Apache-2.0
"""Layers by name: recorded while the model is called, whatever kind of Keras model it is.

Recording what each layer gives while the model runs, eagerly or while being traced, works alike
for functional, Sequential and subclassed models, nested ones too, of Keras 3 and of tf_keras.
"""

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray_embed.encoders.keras_compat import keras_family, layer_classes
from ray_embed.errors import InputError

Recorded = dict[str, list[Any]]
Watch = Callable[[Any, Any], None]


@contextlib.contextmanager
def recording(watch: Watch | None = None) -> Iterator[Recorded]:
    """Record what each layer gives, by path (``outer/inner``, the called model itself left out).

    A path holds as many values as the layer was called times.

    Args:
        watch: called with each layer and its output.
    """
    recorded: Recorded = {}
    stack: list[str] = []
    originals = [(cls, cls.__call__) for cls in layer_classes().values()]

    def wrapped(original: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            # Some classes reach Layer.__call__ twice for one call (a subclass calls super's).
            stack.append(self.name)
            try:
                output = original(self, *args, **kwargs)
                path = "/".join(stack[1:])
            finally:
                stack.pop()
            if watch is not None:
                watch(self, output)
            if path:
                recorded.setdefault(path, []).append(output)
            return output

        return call

    for cls, original in originals:
        cls.__call__ = wrapped(original)
    try:
        yield recorded
    finally:
        for cls, original in originals:
            cls.__call__ = original


@contextlib.contextmanager
def inputs_of(layer: Any) -> Iterator[list[Any]]:
    """Record what `layer` is called with, wherever that happens."""
    seen: list[Any] = []
    cls = layer_classes()[keras_family(layer)]
    original = cls.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is layer and args:
            seen.append(args[0])
        return original(self, *args, **kwargs)

    cls.__call__ = call
    try:
        yield seen
    finally:
        cls.__call__ = original


def is_feature(value: Any) -> bool:
    """Whether a recorded value can be pooled to features: one float tensor of rank 2 to 4."""
    rank = getattr(getattr(value, "shape", None), "rank", None)
    return rank in (2, 3, 4) and bool(getattr(value.dtype, "is_floating", False))


def selectable(recorded: Recorded, batch: int | None = None) -> dict[str, Any]:
    """Give the layers that `--layer` accepts with what they gave.

    Args:
        recorded: what each layer gave.
        batch: the number of images; layers whose first axis is not that long are left out.
    """
    return {
        path: values[0]
        for path, values in recorded.items()
        if len(values) == 1 and is_feature(values[0]) and batch in (None, values[0].shape[0])
    }


def batch_fault(shapes: Sequence[Sequence[int]], sizes: Sequence[int]) -> str | None:
    """Say what is wrong with an output whose first axis is not the batch; None if nothing is.

    Args:
        shapes: the output's shapes in calls with batches of different sizes.
        sizes: the sizes.
    """
    pairs = list(zip(shapes, sizes, strict=True))
    if len({len(shape) for shape in shapes}) > 1:
        return f"its rank changes with the batch: {_listed(pairs)}"
    if all(shape[0] == size for shape, size in pairs):
        for axis in range(1, len(shapes[0])):
            if len({shape[axis] for shape in shapes}) > 1:
                return f"the length of its axis {axis} changes with the batch: {_listed(pairs)}"
        return None
    for axis in range(1, len(shapes[0])):
        if all(shape[axis] == size for shape, size in pairs):
            return f"its batch is axis {axis}, not axis 0: {_listed(pairs)}"
    if len(pairs) > 1 and len({shape[0] for shape in shapes}) == 1:
        return (
            f"its axis 0 is {shapes[0][0]} long whatever the batch, as of position embeddings: "
            f"{_listed(pairs)}"
        )
    times = {shape[0] / size for shape, size in pairs}
    if len(pairs) > 1 and len(times) == 1 and (factor := times.pop()).is_integer():
        return (
            f"its axis 0 is the batch times {int(factor)}, as of attention in windows: "
            f"{_listed(pairs)}"
        )
    return f"its axis 0 is not the batch: {_listed(pairs)}"


def _listed(pairs: Sequence[tuple[Sequence[int], int]]) -> str:
    return ", ".join(f"{tuple(shape)} for {size} images" for shape, size in pairs)


def select(name: str, recorded: Recorded) -> Any:
    """Give what the layer `name` gave.

    Raises:
        InputError: there is no such layer (names the nearest), it was called more than once, or
            it gives no features.
    """
    if name not in recorded:
        near = difflib.get_close_matches(name, recorded, 5, 0.4) or list(recorded)[-5:]
        raise InputError(
            f"--layer {name}: the model has no such layer; the nearest are "
            f"{', '.join(near) or '(none: the model has no named layers)'}; "
            "`ray-embed layers --model …` lists all"
        )
    values = recorded[name]
    if len(values) > 1:
        once = [path for path, calls in recorded.items() if len(calls) == 1]
        raise InputError(
            f"--layer {name}: the model calls this layer {len(values)} times, so its output is not "
            f"one; layers called once: {', '.join(once[-10:])}"
        )
    if not is_feature(values[0]):
        raise InputError(
            f"--layer {name}: it gives no single float tensor of rank 2 to 4; others: "
            f"{', '.join(list(selectable(recorded))[-10:])}"
        )
    return values[0]
