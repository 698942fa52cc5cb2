# SPDX-License-Identifier: Apache-2.0
"""Which engines are tried, and how TensorFlow is started, with and without GPUs.

There is no GPU here: what depends on one is asked as if there were.
"""

import sys

import pytest
import tensorflow as tf

from ray_embed import importing, starting
from ray_embed.encoder.engines import candidates, has_openvino
from ray_embed.resources import Resources


def test_the_order_on_a_cpu():
    first = ("openvino",) if has_openvino() else ()
    assert candidates("auto", gpu=False) == (*first, "folded", "function", "plain")
    assert candidates("tensorflow", gpu=False) == ("folded", "function", "plain")


@pytest.mark.parametrize("asked", ["auto", "tensorflow"])
def test_on_a_gpu_xla_comes_first_and_nothing_computes_on_the_cpu(asked: str):
    assert candidates(asked, gpu=True) == ("xla", "folded", "function", "plain")


@pytest.mark.parametrize("gpu", [False, True])
def test_openvino_when_asked_for(gpu: bool):
    assert candidates("openvino", gpu) == ("openvino",)


def test_gpus_are_shared_and_compute_in_float32(monkeypatch, tmp_path):
    gpus = ["GPU 0", "GPU 1"]
    grows = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grows.__setitem__)
    starting.start_tensorflow(None, str(tmp_path))
    assert grows == {"GPU 0": True, "GPU 1": True}
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_batches_are_larger_on_gpus():
    assert Resources(cpus=4, gpus=0).batch_size == 16
    assert Resources(cpus=4, gpus=0.5).batch_size == 128


def test_modules_left_out_for_a_while():
    with importing.without("a_module_that_is_not_there", "json"):
        assert sys.modules["a_module_that_is_not_there"] is None
        # It had been imported before.
        assert sys.modules["json"] is not None
    assert "a_module_that_is_not_there" not in sys.modules
