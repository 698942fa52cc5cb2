# SPDX-License-Identifier: Apache-2.0
"""Errors of code for Keras 2, which `tf.keras` is again with `TF_USE_LEGACY_KERAS=1`.

Many packages for TensorFlow still need that: they import names from `tf.keras` that Keras 3 lacks,
or call it in ways that it refuses.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator

from ray_embed.errors import InputError

VARIABLE = "TF_USE_LEGACY_KERAS"
# The values that TensorFlow takes for yes.
_YES = ("1", "true", "True")

# What Keras 3 refuses, and Keras 2 does.
_ONLY_KERAS_3 = re.compile(
    r"A KerasTensor cannot be used as input to a TensorFlow function"
    r"|'KerasTensor' object has no attribute"
    r"|Unrecognized keyword arguments passed to \w+: \{.*'(input_dim|batch_input_shape|batch_size"
    r"|weights|autocast|implementation|dynamic)':"
    r"|Argument\(s\) not recognized: \{'lr'"
    r"|add_weight\(\) got multiple values for argument 'shape'|Received: add_weight\('"
    r"|Only instances of `?keras\.Layer`? can be added to a Sequential model"
)
_NO_NAME = (
    re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'"),
    re.compile(r"cannot import name '(?P<name>\w+)' from '(?P<module>[\w.]+)'"),
    re.compile(r"No module named '(?P<module>[\w.]+)\.(?P<name>\w+)'"),
)
# What `tf.keras` is called in messages, and Keras 3 itself.
_TF_KERAS = re.compile(r"(tensorflow\.keras|tensorflow\.python\.keras|keras\._tf_keras\.keras)\b")
_KERAS = re.compile(r"keras(\.api|\.src)?\b")


def environment() -> dict[str, str]:
    """Return the variable where it is set here, for processes that do not inherit it."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


def advice(error: BaseException) -> str:
    """Return advice to be added to a message, where Keras 2 would not have raised the error.

    Args:
        error: what code of the user's has raised, or an error raised from it.

    Returns:
        A sentence on a line of its own; empty where Keras 2 would not help, or is in use.
    """
    if os.environ.get(VARIABLE) in _YES:
        return ""
    seen: BaseException | None = error
    while seen is not None:
        module = _module_that_lacks(str(seen))
        if module == "tf.keras" or _is_of_keras_2(seen) or _ONLY_KERAS_3.search(str(seen)):
            return (
                f"\nthis code needs Keras 2: set {VARIABLE}=1 in the environment, so that tf.keras "
                "is Keras 2 (the package tf_keras), and start the command again"
            )
        if module == "keras":
            return (
                f"\nthis code needs Keras 2: set {VARIABLE}=1 in the environment, so that tf.keras "
                "is Keras 2 (the package tf_keras), and start the command again; `import keras` is "
                "Keras 3 even then: have the code use tf.keras (segmentation_models does so with "
                "SM_FRAMEWORK=tf.keras)"
            )
        seen = seen.__cause__ or seen.__context__
    return ""


@contextlib.contextmanager
def advised() -> Iterator[None]:
    """Add the advice to an error of the input that has been raised from another one.

    Raises:
        InputError: the same, with the advice.
    """
    try:
        yield
    except InputError as error:
        text = advice(error)
        if not text or VARIABLE in str(error):
            raise
        raise InputError(f"{error}{text}") from error


def _module_that_lacks(text: str) -> str:
    """Name the Keras, `tf.keras` or `keras`, that lacks a name which Keras 2 has."""
    for pattern in _NO_NAME:
        for match in pattern.finditer(text):
            module, name = match["module"], match["name"]
            for keras, prefix in (("tf.keras", _TF_KERAS), ("keras", _KERAS)):
                if found := prefix.match(module):
                    below = module[found.end() :]
                    return keras if _has(below, name) else ""
            if (module, name) == ("tensorflow", "keras"):
                return "tf.keras"
    return ""


def _has(below: str, name: str) -> bool:
    """Return whether Keras 2 has a name in one of its public modules."""
    if (below, name) == (".utils", "generic_utils"):
        # Code that imports `keras` looks for it, and does without it where it uses `tf.keras`.
        return True
    with contextlib.suppress(ImportError):
        if hasattr(importlib.import_module(f"tf_keras{below}"), name):
            return True
    with contextlib.suppress(ImportError):
        return importlib.util.find_spec(f"tf_keras{below}.{name}") is not None
    return False


def _is_of_keras_2(error: BaseException) -> bool:
    """Return whether a layer of Keras 3 lacks an attribute that the layers of Keras 2 have."""
    keras = sys.modules.get("keras")
    if not isinstance(error, AttributeError) or keras is None or error.name is None:
        return False
    if not isinstance(error.obj, keras.layers.Layer):
        return False
    import tf_keras

    return any(hasattr(cls, error.name) for cls in (tf_keras.Model, tf_keras.Sequential))
