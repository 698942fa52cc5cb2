# SPDX-License-Identifier: Apache-2.0
"""Inspect layers, models and variables of Keras 3 and of tf_keras in the same way."""

import functools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# The end of messages about weights that do not belong to the model.
WEIGHTS_HINT = "Are these the weights of this architecture? See --submodel and --model-kwargs."

# Attributes in which Keras keeps its layers. These layers are matched by position, not by name.
STRUCTURE = {"_functional", "_operations", "_layers", "_tracked", "_self_tracked_trackables"}
POSITION = re.compile(r"layer(_with_weights)?-\d+")

_FAMILIES = ("keras", "tf_keras")


def layer_classes() -> dict[str, Any]:
    """Return the `Layer` classes of the imported Keras packages, by package name."""
    # No value can have a class from a package that is not imported, and importing takes seconds.
    modules = {family: sys.modules.get(family) for family in _FAMILIES}
    return {family: module.layers.Layer for family, module in modules.items() if module}


def keras_family(value: Any) -> str:
    """Return `keras` or `tf_keras` for a layer or model, or an empty string for other values.

    Args:
        value: any value. Keras need not be imported.
    """
    for family, layer_class in layer_classes().items():
        if isinstance(value, layer_class):
            return family
    return ""


def has_base(value: Any, name: str) -> bool:
    """Return whether the value is an instance of the Keras class of this name or a subclass."""
    # The classes are compared by name, because some of them are in modules that are not public.
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] in _FAMILIES
        for base in type(value).__mro__
    )


def is_positional(value: Any) -> bool:
    """Return whether the value is a model whose layers have positions: functional or Sequential."""
    return has_base(value, "Functional") or has_base(value, "Sequential")


def keeps_state_in_weights(model: Any) -> bool:
    """Return whether all that distinguishes a model from one with other weights are its weights.

    This holds for functional and Sequential models of Keras's own layers. Layers that adapt to data
    keep constants besides their variables, and layers of the user may keep anything.
    """
    if keras_family(model) != "keras" or not is_positional(model):
        return False
    return all(
        type(layer).__module__.startswith("keras.src.")
        and type(layer).__name__ != "Lambda"
        and not hasattr(layer, "adapt")
        for layer in model._flatten_layers()
    )


def is_variable(value: Any) -> bool:
    """Return whether the value is a Keras 3 variable, or a TensorFlow one, as in tf_keras."""
    return any(
        base.__name__ == "Variable" and base.__module__.partition(".")[0] in ("keras", "tensorflow")
        for base in type(value).__mro__
    )


def variable_path(variable: Any) -> str:
    """Return the path of a Keras 3 variable, or the name of a tf_keras variable."""
    return str(getattr(variable, "path", None) or variable.name)


def bare_name(variable: Any) -> str:
    """Return the name of a variable without the scopes that it was created in."""
    return str(variable.name).rpartition("/")[2].partition(":")[0]


def wanted_shape(variable: Any) -> str:
    """Return the start of a message: the variable, and the shape that the model needs."""
    return f"{variable_path(variable)}: the model wants shape {tuple(variable.shape)}"


def numpy_dtype(variable: Any) -> Any:
    """Return the NumPy type of the variable's values, even for types that NumPy itself lacks."""
    import tensorflow as tf

    return tf.as_dtype(variable.dtype).as_numpy_dtype


def weights_of(layer: Any) -> list[Any]:
    """Return the variables with the weights of a layer or model, excluding variables of measures.

    tf_keras also counts the variables of metrics that are attributes of a model, but not every
    file of its weights has them.
    """
    try:
        weights = list(layer.weights)
    except ValueError:  # a tf_keras model that was never called
        return []
    if keras_family(layer) != "tf_keras":
        return weights
    metrics = [metric for inner in layer._flatten_layers() for metric in inner._metrics]
    excluded = {id(variable) for metric in metrics for variable in metric.variables}
    return [variable for variable in weights if id(variable) not in excluded]


def children_of(value: Any) -> list[tuple[str, Any]]:
    """Return the parts of `value` that may hold weights, with the names that a file may use.

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
        # Variables from add_weight that are not attributes are known by their own names.
        held = {id(item) for _, item in items}
        for name in ("_trainable_variables", "_non_trainable_variables"):
            variables = getattr(value, name, [])
            items += [(bare_name(item), item) for item in variables if id(item) not in held]
    hidden = _bookkeeping() if family == "keras" else frozenset()
    return [
        (name, item)
        for name, item in items
        if not POSITION.fullmatch(name) and name not in hidden and _may_hold_weights(item)
    ]


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Return the attributes that every Keras 3 layer has; no file uses their names."""
    import keras

    return frozenset(vars(keras.layers.Layer())) | STRUCTURE


def _may_hold_weights(value: Any) -> bool:
    if isinstance(value, (list, tuple, Mapping)) or is_variable(value):
        return True
    # The variables of measures and optimizers are not model weights, but may have the same shapes.
    if any(base.__name__ in ("Metric", "Optimizer") for base in type(value).__mro__):
        return False
    return hasattr(value, "_trackable_children") or bool(keras_family(value))


def finish_normalization(models: Sequence[Any]) -> None:
    """Update the Normalization layers in `models` after their variables were assigned.

    These layers compute with copies of their variables, which Keras updates only on request.

    Args:
        models: layers or models of either Keras package, including nested ones.
    """
    for model in models:
        for layer in model._flatten_layers():
            if hasattr(layer, "adapt_mean") and hasattr(layer, "finalize_state"):
                layer.finalize_state()
