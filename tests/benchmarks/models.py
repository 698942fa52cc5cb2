# SPDX-License-Identifier: Apache-2.0
"""The encoder of the benchmarks, as a callable for `--model`.

The folder it is in has to be the working folder:

    cd tests/benchmarks
    ray-embed run --source valid=FOLDER --model models:mobilenet --image-size 96,96 --out RUN
"""

from __future__ import annotations

from typing import Any


def mobilenet() -> Any:
    """MobileNetV2 for 96x96 pictures without its head: (N, 96, 96, 3) to (N, 3, 3, 1280).

    The weights are random but the same in every process, so that two ways to extract features
    can be compared; no pretrained weights are needed.
    """
    import keras

    keras.utils.set_random_seed(0)
    return keras.applications.MobileNetV2(input_shape=(96, 96, 3), include_top=False, weights=None)


def resnet50() -> Any:
    """ResNet50 for 224x224 pictures, pooled: (N, 224, 224, 3) to (N, 2048); a heavy encoder."""
    import keras

    keras.utils.set_random_seed(0)
    return keras.applications.ResNet50(
        input_shape=(224, 224, 3), include_top=False, weights=None, pooling="avg"
    )


def tiny() -> Any:
    """Two convolutions for 32x32 pictures: (N, 32, 32, 3) to (N, 8, 8, 16), next to no work."""
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
        ]
    )
