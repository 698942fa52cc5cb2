# SPDX-License-Identifier: Apache-2.0
import keras
import numpy as np
from conftest import Command, assert_features_equal, make_folder

import ray_embed as package


def test_folder_and_keras_file(ray_embed: Command, tmp_path):
    make_folder(tmp_path / "valid", {"a": 3, "b": 2})
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Conv2D(5, 3), keras.layers.ReLU()]
    )
    model.save(tmp_path / "m.keras")
    result = ray_embed("run", "--source", "valid", "--model", "m.keras", "--out", "r")
    assert result.code == 0, result.err
    features, labels = package.load("r").to_numpy()
    assert list(labels) == ["a", "a", "a", "b", "b"]
    images = keras.utils.image_dataset_from_directory(
        tmp_path / "valid", image_size=(16, 16), shuffle=False, batch_size=5
    )
    batch = next(iter(images))[0] / 255.0
    expected = np.asarray(model(batch, training=False)).mean((1, 2))
    assert_features_equal(features, expected)
