# SPDX-License-Identifier: Apache-2.0
"""Recognize errors in code that was written for Keras 2, and suggest `TF_USE_LEGACY_KERAS=1`.

With that variable, `tf.keras` is Keras 2. Many packages for TensorFlow still use names of
`tf.keras` that Keras 3 lacks.
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
# The values that TensorFlow reads as true.
_TRUE = ("1", "true", "True")

# What Python says when a module lacks a name.
_MISSING_NAME = (
    re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'"),
    re.compile(r"cannot import name '(?P<name>\w+)' from '(?P<module>[\w.]+)'"),
    re.compile(r"No module named '(?P<module>[\w.]+)\.(?P<name>\w+)'"),
)
# The module names of `tf.keras` in messages, and of Keras 3 itself.
_TF_KERAS = re.compile(r"(tensorflow\.keras|tensorflow\.python\.keras|keras\._tf_keras\.keras)\b")
_KERAS = re.compile(r"keras(\.api|\.src)?\b")


def read_environment() -> dict[str, str]:
    """Return the variable if it is set, for processes that do not inherit the environment."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


def suggest_legacy_keras(error: BaseException) -> str:
    """Return a suggestion to add to a message, if Keras 2 has what the code lacks in Keras 3.

    Args:
        error: an error from the user's code, or one that was raised from it.

    Returns:
        A sentence on a line of its own. It is empty if Keras 2 would not help, or is in use.
    """
    if os.environ.get(VARIABLE) in _TRUE:
        return ""
    cause: BaseException | None = error
    while cause is not None:
        module = _find_lacking_module(str(cause))
        if module == "tf.keras" or _misses_layer_attribute(cause):
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
        cause = cause.__cause__ or cause.__context__
    return ""


@contextlib.contextmanager
def explain_legacy_errors() -> Iterator[None]:
    """Add the suggestion to an InputError that was raised from an error in the user's code.

    Raises:
        InputError: the same error with the suggestion.
    """
    try:
        yield
    except InputError as error:
        text = suggest_legacy_keras(error)
        if not text or VARIABLE in str(error):
            raise
        raise InputError(f"{error}{text}") from error


def _find_lacking_module(text: str) -> str:
    """Return `tf.keras` or `keras`, whichever lacks a name that Keras 2 has, or an empty string."""
    for pattern in _MISSING_NAME:
        for match in pattern.finditer(text):
            module, name = match["module"], match["name"]
            for keras, prefix in (("tf.keras", _TF_KERAS), ("keras", _KERAS)):
                if matched := prefix.match(module):
                    submodule = module[matched.end() :]
                    return keras if _keras_2_has(submodule, name) else ""
            if (module, name) == ("tensorflow", "keras"):
                return "tf.keras"
    return ""


def _keras_2_has(submodule: str, name: str) -> bool:
    """Return whether a public module of Keras 2 has a name."""
    if (submodule, name) == (".utils", "generic_utils"):
        # Keras 2 has this module only in `keras`; code that uses `tf.keras` does not need it.
        return True
    with contextlib.suppress(ImportError):
        if hasattr(importlib.import_module(f"tf_keras{submodule}"), name):
            return True
    with contextlib.suppress(ImportError):
        return importlib.util.find_spec(f"tf_keras{submodule}.{name}") is not None
    return False


def _misses_layer_attribute(error: BaseException) -> bool:
    """Return whether a layer of Keras 3 lacks an attribute that layers of Keras 2 have."""
    keras = sys.modules.get("keras")
    if not isinstance(error, AttributeError) or keras is None or error.name is None:
        return False
    if not isinstance(error.obj, keras.layers.Layer):
        return False
    import tf_keras

    return any(hasattr(cls, error.name) for cls in (tf_keras.Model, tf_keras.Sequential))
