# SPDX-License-Identifier: Apache-2.0
"""Looks at the objects of Keras 3 and of tf_keras alike: layers, variables, what holds them."""

import functools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# What a message about weights that are not the model's ends with.
MEND = "Are these the weights of this architecture? See --submodel and --model-kwargs."

# Where Keras itself keeps its layers: these are paired by position, never by attribute name.
STRUCTURE = {"_functional", "_operations", "_layers", "_tracked", "_self_tracked_trackables"}
POSITION = re.compile(r"layer(_with_weights)?-\d+")

_FAMILIES = ("keras", "tf_keras")


def layer_classes() -> dict[str, Any]:
    """Give the `Layer` classes of the Keras that are imported, by package name."""
    # What is not imported cannot be the class of a value, and importing it takes seconds.
    found = {family: sys.modules.get(family) for family in _FAMILIES}
    return {family: module.layers.Layer for family, module in found.items() if module is not None}


def keras_family(value: Any) -> str:
    """Give `keras` or `tf_keras` for a layer or model of it, for any other value an empty string.

    Args:
        value: anything at all, its Keras imported or not.
    """
    for family, layer_class in layer_classes().items():
        if isinstance(value, layer_class):
            return family
    return ""


def has_base(value: Any, name: str) -> bool:
    """Whether the value is of a class of Keras with this name, or of one derived from it."""
    # By name, because the two Keras keep some of these classes in modules that are not public.
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] in _FAMILIES
        for base in type(value).__mro__
    )


def is_positional(value: Any) -> bool:
    """Whether the value is a model whose layers have positions: functional or Sequential."""
    return has_base(value, "Functional") or has_base(value, "Sequential")


def is_variable(value: Any) -> bool:
    """Whether the value is a variable of Keras 3 or of TensorFlow, which tf_keras uses."""
    return any(
        base.__name__ == "Variable" and base.__module__.partition(".")[0] in ("keras", "tensorflow")
        for base in type(value).__mro__
    )


def variable_path(variable: Any) -> str:
    """Give the variable's path in Keras 3, its name in tf_keras."""
    return str(getattr(variable, "path", None) or variable.name)


def own_name(variable: Any) -> str:
    """Give the variable's name without the scopes that it was created in."""
    return str(variable.name).rpartition("/")[2].partition(":")[0]


def wanted_shape(variable: Any) -> str:
    """Say which shape the model wants: the beginning of a message."""
    return f"{variable_path(variable)}: the model wants shape {tuple(variable.shape)}"


def numpy_dtype(variable: Any) -> Any:
    """Give the NumPy type of the variable's values, also for those NumPy itself lacks."""
    import tensorflow as tf

    return tf.as_dtype(variable.dtype).as_numpy_dtype


def weights_of(layer: Any) -> list[Any]:
    """Give the variables that make up the weights of a layer or model, none if it has none yet.

    tf_keras counts those of metrics too that are attributes of a model, but not every file of its
    weights has them.
    """
    try:
        weights = list(layer.weights)
    except ValueError:  # a tf_keras model that was never called
        return []
    if keras_family(layer) != "tf_keras":
        return weights
    metrics = [metric for one in layer._flatten_layers() for metric in one._metrics]
    aside = {id(variable) for metric in metrics for variable in metric.variables}
    return [variable for variable in weights if id(variable) not in aside]


def children_of(value: Any) -> list[tuple[str, Any]]:
    """Give what `value` holds that may hold weights, by the names that a file may know it by.

    Args:
        value: a layer, a list or mapping, or another object that TensorFlow tracks.
    """
    family = keras_family(value)
    if isinstance(value, (list, tuple)):
        items = [(str(index), item) for index, item in enumerate(value)]
    elif isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif family != "keras" and hasattr(value, "_trackable_children"):
        items = list(value._trackable_children().items())
    else:
        items = list(getattr(value, "__dict__", {}).items())
        # Variables made by add_weight that no attribute holds go by their own name.
        held = {id(item) for _, item in items}
        for name in ("_trainable_variables", "_non_trainable_variables"):
            own = getattr(value, name, [])
            items += [(own_name(item), item) for item in own if id(item) not in held]
    hidden = _bookkeeping() if family == "keras" else frozenset()
    return [
        (name, item)
        for name, item in items
        if not POSITION.fullmatch(name) and name not in hidden and _may_hold_weights(item)
    ]


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Attributes that every Keras 3 layer has for itself: no file knows them by these names."""
    import keras

    return frozenset(vars(keras.layers.Layer())) | STRUCTURE


def _may_hold_weights(value: Any) -> bool:
    if isinstance(value, (list, tuple, Mapping)) or is_variable(value):
        return True
    # Their variables are not the model's, and have shapes that could be mistaken for its.
    if any(base.__name__ in ("Metric", "Optimizer") for base in type(value).__mro__):
        return False
    return hasattr(value, "_trackable_children") or bool(keras_family(value))


def finish_normalization(models: Sequence[Any]) -> None:
    """Let the Normalization layers in `models` compute with their variables' present values.

    They compute with copies, which Keras makes anew only on request; call this after assigning.

    Args:
        models: layers or models of either Keras; nested ones are reached too.
    """
    for model in models:
        for layer in model._flatten_layers():
            if hasattr(layer, "adapt_mean") and hasattr(layer, "finalize_state"):
                layer.finalize_state()
