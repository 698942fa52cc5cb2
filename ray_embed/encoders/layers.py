# SPDX-License-Identifier: Apache-2.0
"""Record the outputs of a model's layers while it is called, and select them by name.

This works for functional, Sequential, subclassed and nested models, of Keras 3 and of tf_keras, in
eager calls and while the model is traced.
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
def record_layers(watch: Watch | None = None) -> Iterator[Recorded]:
    """Record the outputs of each layer by path, such as ``outer/inner``.

    The called model itself is left out. Each path has one value per call of its layer.

    Args:
        watch: called with each layer and its output.
    """
    recorded: Recorded = {}
    stack: list[str] = []
    originals = [(cls, cls.__call__) for cls in layer_classes().values()]

    def wrapped(original: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            # Some calls reach a wrapped `__call__` twice, because a subclass calls its parent's.
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
def record_inputs(layer: Any) -> Iterator[list[Any]]:
    """Record the inputs of every call of `layer`."""
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
    """Return whether a recorded value can be pooled: it is one float tensor of rank 2 to 4."""
    rank = getattr(getattr(value, "shape", None), "rank", None)
    return rank in (2, 3, 4) and bool(getattr(value.dtype, "is_floating", False))


def selectable_layers(recorded: Recorded, batch: int | None = None) -> dict[str, Any]:
    """Return the layers that ``--layer`` accepts, with their outputs.

    Args:
        recorded: the outputs of each layer.
        batch: the number of images. Layers whose first axis has another length are left out.
    """
    return {
        path: values[0]
        for path, values in recorded.items()
        if len(values) == 1 and is_feature(values[0]) and batch in (None, values[0].shape[0])
    }


def unknown_layer(name: str, known: Sequence[str]) -> InputError:
    """Return the error about a layer that a model does not have, which names similar ones."""
    near = difflib.get_close_matches(name, known, 5, 0.4) or known[-5:]
    return InputError(
        f"--layer {name}: the model has no such layer; the nearest are "
        f"{', '.join(near) or '(none: the model has no named layers)'}; "
        "`ray-embed layers --model …` lists all"
    )


def select_layer(name: str, recorded: Recorded) -> Any:
    """Return the output of the layer `name`.

    Raises:
        InputError: there is no such layer (the message names similar ones), it was called more
            than once, or its output cannot be used as features.
    """
    if name not in recorded:
        raise unknown_layer(name, list(recorded))
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
            f"{', '.join(list(selectable_layers(recorded))[-10:])}"
        )
    return values[0]
