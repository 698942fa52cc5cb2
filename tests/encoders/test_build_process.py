# SPDX-License-Identifier: Apache-2.0
"""The encoder is built in a process of its own, beside the start of Ray."""

from pathlib import Path

import numpy as np
import pytest
from support.command import Command
from support.pictures import make_folder

import ray_embed as package

MODEL = """
import os, sys
import keras
import numpy as np

def talkative():
    print("hello from the model")
    os.write(1, b"and from below Python\\n")
    print("a warning", file=sys.stderr)
    with open("built", "a") as file:
        file.write("once\\n")
    # With other weights each time.
    images = keras.Input((16, 16, 3))
    return keras.Model(images, keras.layers.Conv2D(5, 3)(images))

def dies():
    print("the last words", file=sys.stderr, flush=True)
    os._exit(7)

def fails():
    raise ZeroDivisionError("of the model")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "my_models.py").write_text(MODEL)
    make_folder(tmp_path / "images", {"a": 3, "b": 2})
    return tmp_path


@pytest.mark.slow
def test_random_weights_stay_the_same_when_going_on(
    project: Path, ray_embed_process: Command, ray_embed: Command
):
    arguments = ("--source", "valid=images", "--out", "run", "--model", "my_models:talkative")
    arguments += ("--shard-size", 2)
    result = ray_embed_process("extract", *arguments)
    assert result.code == 0, result.err
    # What is printed while building goes nowhere.
    assert "hello" not in result.out
    assert "below Python" not in result.out
    # The request that is sent before Ray has started is the one that the run needs.
    assert (project / "built").read_text() == "once\n"
    before, _ = package.load(str(project / "run")).to_numpy()
    assert before.shape == (5, 5)
    (project / "run" / "features" / "part-00000001.parquet").unlink()
    # What can be made of the rest is written again.
    graph = project / "run" / "encoder" / "graph.pb"
    content = graph.read_bytes()
    graph.unlink()
    result = ray_embed_process("extract", *arguments)
    assert result.code == 0, result.err
    assert "run/encoder: damaged, writing it again" in result.err
    assert graph.read_bytes() == content
    after, _ = package.load(str(project / "run")).to_numpy()
    assert np.array_equal(before, after)
    # Without its weights nobody can build the same one again.
    (project / "run" / "encoder" / "weights.npz").unlink()
    result = ray_embed("extract", *arguments)
    assert result.code == 2
    assert "run/encoder/weights.npz: it is missing" in result.err
    assert "--overwrite" in result.err
    assert "Traceback" not in result.err


def test_a_model_that_kills_the_process(project: Path, ray_embed_process: Command):
    arguments = ("--source", "valid=images", "--out", "run", "--model", "my_models:dies")
    result = ray_embed_process("run", *arguments)
    assert result.code == 1
    assert "exit 7" in result.err
    assert "the last words" in result.err
    assert "Traceback" not in result.err
    assert not (project / "run").exists()


@pytest.mark.slow
def test_a_model_that_fails(project: Path, ray_embed_process: Command):
    arguments = ("--source", "valid=images", "--out", "run", "--model", "my_models:fails")
    result = ray_embed_process("run", *arguments)
    assert result.code == 2
    assert "ZeroDivisionError: of the model" in result.err
    assert not (project / "run").exists()
