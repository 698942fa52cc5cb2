# SPDX-License-Identifier: Apache-2.0
"""Which engines are tried, and how TensorFlow is started, with and without GPUs.

There is no GPU here: what depends on one is asked as if there were.
"""

import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.encoders import spec

from ray_embed.core import user_code
from ray_embed.encoders import tensorflow_setup
from ray_embed.encoders.build import build
from ray_embed.encoders.engines import choice
from ray_embed.encoders.engines.base import candidates
from ray_embed.encoders.engines.openvino import is_openvino_installed
from ray_embed.encoders.engines.registry import open_engine
from ray_embed.encoders.frameworks.keras import FRAMEWORK
from ray_embed.runtime.resources import Resources


def names(option: str, gpu: bool) -> tuple[str, ...]:
    return tuple(engine.name for engine in candidates(FRAMEWORK.engines, option, gpu))


def test_the_order_on_a_cpu():
    first = ("openvino",) if is_openvino_installed() else ()
    assert names("auto", gpu=False) == (*first, "folded", "function", "plain")
    assert names("tensorflow", gpu=False) == ("folded", "function", "plain")


@pytest.mark.parametrize("asked", ["auto", "tensorflow"])
def test_on_a_gpu_xla_comes_first_and_nothing_computes_on_the_cpu(asked: str):
    assert names(asked, gpu=True) == ("xla", "folded", "function", "plain")


@pytest.mark.parametrize("gpu", [False, True])
def test_openvino_when_asked_for(gpu: bool):
    assert names("openvino", gpu) == ("openvino",)


def test_gpus_are_shared_and_compute_in_float32(monkeypatch, tmp_path):
    gpus = ["GPU 0", "GPU 1"]
    grows = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grows.__setitem__)
    tensorflow_setup.start_tensorflow(None, str(tmp_path))
    assert grows == {"GPU 0": True, "GPU 1": True}
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_batches_are_larger_on_gpus():
    assert Resources(cpus=4, gpus=0).batch_size == 16
    assert Resources(cpus=4, gpus=0.5).batch_size == 128


def test_modules_left_out_for_a_while():
    with user_code.hide_modules("a_module_that_is_not_there", "json"):
        assert sys.modules["a_module_that_is_not_there"] is None
        # It had been imported before.
        assert sys.modules["json"] is not None
    assert "a_module_that_is_not_there" not in sys.modules


def test_an_engine_that_is_off_on_smooth_images_is_not_taken(monkeypatch):
    """White noise alone hides rounding errors of kernels that cancel out on photographs."""
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, keras.layers.Conv2D(4, 3)(image))

    def off_on_smooth(encoder, threads):
        run = open_engine(encoder, threads)

        def rows(batch):
            steps = np.abs(np.diff(batch, axis=1)).mean((1, 2, 3))
            smooth = np.where(steps < 0.2, 1.01, 1).astype(np.float32)
            return [values * smooth[:, None] for values in run(batch)]

        return rows

    def first_is_off(engines, option, gpu):
        first, *others = candidates(engines, option, gpu)
        return (replace(first, open=off_on_smooth), *others)

    monkeypatch.setattr(choice, "candidates", first_is_off)
    encoder = build(spec(model))
    first, second, *_ = names("auto", False)
    assert encoder.engine == second
    assert f"engine {first}: its features differ" in encoder.warnings[0]
