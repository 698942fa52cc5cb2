# SPDX-License-Identifier: Apache-2.0
"""Import KerasHub, which is an extra."""

import importlib.util
from typing import Any

from ray_embed.errors import InputError, get_first_line

_FIX = "install it: pip install 'ray_embed[hub]'"


def is_keras_hub_installed() -> bool:
    """Return whether KerasHub is installed, without importing it."""
    return importlib.util.find_spec("keras_hub") is not None


def check_keras_hub(model: str) -> None:
    """Check that KerasHub is installed, without importing it.

    Raises:
        InputError: it is not.
    """
    if not is_keras_hub_installed():
        raise InputError(f"--model {model}: it needs KerasHub (keras-hub); {_FIX}")


def import_keras_hub(model: str) -> Any:
    """Import KerasHub.

    Args:
        model: the value of ``--model``, for the error.

    Raises:
        InputError: it is not installed, or its import fails.
    """
    check_keras_hub(model)
    try:
        import keras_hub
    except Exception as error:
        raise InputError(
            f"--model {model}: KerasHub (keras-hub) is installed, but its import fails: "
            f"{get_first_line(error)}; {_FIX}"
        ) from error
    return keras_hub
