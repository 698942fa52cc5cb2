# SPDX-License-Identifier: Apache-2.0
"""Recognize checkpoints in which Keras 3 silently left out a part of the model.

`tf.train.Checkpoint` saves the attributes of a Keras 3 layer, but not layers in lists or
dictionaries. Keras 2 had its own list types for those.
"""

from collections.abc import Mapping
from typing import Any

from ray_embed.encoders.keras_compat import children_of, is_positional, is_variable, weights_of


def describe_missing_lists(model: Any, matched: set[int], stored: int) -> str | None:
    """Describe how a checkpoint lacks the layers in lists, if only these are missing.

    Args:
        model: the model that the checkpoint should contain.
        matched: the ids of the model's variables that have a value of the right shape in the
            checkpoint.
        stored: how many model variables the checkpoint holds.

    Returns:
        What is wrong and how to save the model again, or None if something else is also missing.
    """
    wanted = {id(variable) for variable in model.weights}
    outside, lists = _outside_lists(model)
    outside &= wanted
    if not lists or matched & wanted != outside or outside == wanted or len(outside) < stored:
        return None
    return (
        f"it holds {len(outside)} of the model's {len(wanted)} variables: tf.train.Checkpoint does "
        f"not save what a Keras 3 model holds in lists or dictionaries ({', '.join(lists[:3])}). "
        "The other values are not in the file: save the trained model again, with "
        "model.save_weights('encoder.weights.h5'), and give that file"
    )


def _outside_lists(model: Any) -> tuple[set[int], list[str]]:
    """Return the variables outside of lists, and the names of lists that hold other variables."""
    variables: set[int] = set()
    lists: dict[str, None] = {}
    seen, waiting = {id(model)}, [model]
    while waiting:
        owner = waiting.pop()
        layers = owner.layers if is_positional(owner) else []
        for name, child in [*children_of(owner), *(("", layer) for layer in layers)]:
            if isinstance(child, (list, tuple, Mapping)):
                # Under names like this, TensorFlow keeps its own record of the attributes.
                if _holds_layers(child) and not name.startswith("_self_"):
                    lists[f"{getattr(owner, 'name', type(owner).__name__)}.{name}"] = None
            elif is_variable(child):
                variables.add(id(child))
            elif id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)
    return variables, list(lists)


def _holds_layers(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value
    return any(
        _holds_layers(item) if isinstance(item, (list, tuple, Mapping)) else _has_weights(item)
        for item in items
    )


def _has_weights(item: Any) -> bool:
    return is_variable(item) or bool(hasattr(item, "weights") and weights_of(item))
