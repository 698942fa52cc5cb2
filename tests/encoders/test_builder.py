# SPDX-License-Identifier: Apache-2.0
"""Encoders that differ only in their weights share a loaded model, and nothing else."""

from pathlib import Path

import keras
import numpy as np
import pytest
from support.encoders import spec

from ray_embed.encoders.build import Builder, build
from ray_embed.encoders.spec import Encoder
from ray_embed.errors import InputError

MODEL = """
import keras

def count_call():
    with open("calls", "a") as file:
        file.write("once\\n")

def plain():
    count_call()
    images = keras.Input((16, 16, 3))
    maps = keras.layers.BatchNormalization()(keras.layers.Conv2D(5, 3, name="maps")(images))
    return keras.Model(images, keras.layers.Dense(4)(maps))

def adapting():
    count_call()
    layers = [keras.layers.Normalization(), keras.layers.Conv2D(5, 3, name="maps")]
    return keras.Sequential([keras.Input((16, 16, 3)), *layers])

class Remembers(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def call(self, images):
        return images + self.calls

def of_the_user():
    count_call()
    images = keras.Input((16, 16, 3))
    return keras.Model(images, Remembers()(keras.layers.Conv2D(5, 3, name="maps")(images)))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models_of_builder.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def save_weights(project: Path, name: str, count: int) -> list[str]:
    """Save weights of a model, and return the paths; forget the calls."""
    import models_of_builder

    paths = []
    for seed in range(count):
        model = getattr(models_of_builder, name)()
        random = np.random.default_rng(seed)
        for variable in model.weights:
            variable.assign(random.random(variable.shape) if variable.ndim else 1)
        paths.append(str(project / f"{name}-{seed}.weights.h5"))
        model.save_weights(paths[-1])
    (project / "calls").unlink()
    return paths


def count_calls(project: Path) -> int:
    calls = (project / "calls").read_text().count("once")
    (project / "calls").unlink()
    return calls


def describe(encoder: Encoder) -> tuple[object, ...]:
    """Return all of an encoder that can be compared."""
    digests = (encoder.graph, encoder.architecture, encoder.weights_digest, encoder.engine)
    texts = (encoder.outputs, encoder.notes, encoder.warnings, encoder.rescaling)
    return (*digests, *texts, [values.tobytes() for values in encoder.weights])


@pytest.mark.parametrize(("name", "loaded"), [("plain", 1), ("adapting", 3), ("of_the_user", 3)])
def test_encoders_are_those_that_are_built_alone(project: Path, name: str, loaded: int):
    paths = save_weights(project, name, 3)
    asked = [spec(f"models_of_builder:{name}", weights=path) for path in paths]
    builder = Builder()
    together = [builder.build(one, 1, None) for one in asked]
    assert count_calls(project) == loaded
    alone = [build(one) for one in asked]
    assert [describe(encoder) for encoder in together] == [describe(encoder) for encoder in alone]
    assert len({encoder.weights_digest for encoder in together}) == 3


def test_other_requests_load_the_model_again(project: Path):
    first, second = save_weights(project, "plain", 2)
    builder = Builder()
    model = "models_of_builder:plain"
    builder.build(spec(model, weights=first), 1, None)
    assert count_calls(project) == 1
    encoder = builder.build(spec(model, weights=second, layers=("maps",)), 1, None)
    assert count_calls(project) == 1
    assert describe(encoder) == describe(build(spec(model, weights=second, layers=("maps",))))
    count_calls(project)
    # Without a file, weights are those that the model starts with.
    builder.build(spec(model, layers=("maps",)), 1, None)
    assert count_calls(project) == 1


def test_weights_that_do_not_fit_leave_the_next_ones_alone(project: Path):
    first, second = save_weights(project, "plain", 2)
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(7)]).save_weights("other.weights.h5")
    builder = Builder()
    model = "models_of_builder:plain"
    builder.build(spec(model, weights=first), 1, None)
    with pytest.raises(InputError, match=r"other\.weights\.h5"):
        builder.build(spec(model, weights="other.weights.h5"), 1, None)
    encoder = builder.build(spec(model, weights=second), 1, None)
    assert describe(encoder) == describe(build(spec(model, weights=second)))
