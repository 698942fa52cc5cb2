# SPDX-License-Identifier: Apache-2.0
"""What Keras remembers in a process between models: the numbers in layer names, and settings."""

import gc
import sys

_DEFAULTS = ("float32", "float32", "channels_last", 1e-7)


def forget_models() -> None:
    """Free the memory of models, and number layers from the start again, as in a new process."""
    if "keras" in sys.modules:
        import keras

        keras.utils.clear_session(free_memory=False)
    if "tf_keras" in sys.modules:
        import tf_keras

        tf_keras.backend.clear_session()
    # Models refer to themselves, and Python would let many of them pile up.
    gc.collect()


def restart_numbering() -> None:
    """Number layers from the start again, and keep what the user's modules have set."""
    # Keras 3 does not export this.
    from keras.src.utils import naming

    naming.reset_uids()
    if tf_keras := sys.modules.get("tf_keras"):
        tf_keras.backend.reset_uids()


def are_settings_default() -> bool:
    """Return whether Keras has its default settings in this thread, of which each has its own."""
    settings = []
    if "keras" in sys.modules:
        from keras import config

        policy = config.dtype_policy().name
        settings.append((policy, config.floatx(), config.image_data_format(), config.epsilon()))
    if "tf_keras" in sys.modules:
        from tf_keras import backend, mixed_precision

        policy = mixed_precision.global_policy().name
        settings.append((policy, backend.floatx(), backend.image_data_format(), backend.epsilon()))
    return all(values == _DEFAULTS for values in settings)
