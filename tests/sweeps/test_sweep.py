# SPDX-License-Identifier: Apache-2.0
"""A sweep writes the runs that `run` writes alone, and does nothing twice."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image
from support.encoders import PROJECT
from support.many_nodes import start_cluster
from support.pictures import make_folder
from support.sample_runs import contents, read_results, save_encoder

import ray_embed as package
from ray_embed import InputError, RunConfig

OPTIONS = ("--shard-size", 4, "--batch-size", 3, "--actors", 1, "--cpus-per-actor", 1)
EPOCHS = ("epoch-2", "epoch-10", "epoch-9")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images, one of which is none, an encoder, and its weights after several epochs."""
    root = tmp_path_factory.mktemp("sweep")
    make_folder(root / "images", {"cat": 6, "dog": 5})
    (root / "images" / "cat" / "0002.png").write_bytes(b"no picture")
    for seed, epoch in enumerate(EPOCHS):
        path = save_encoder(root / f"{epoch}.keras", seed=seed)
        model = keras.models.load_model(path)
        model.save_weights(root / f"{epoch}.weights.h5")
        path.rename(root / "m.keras")
    return root


def arguments(data: Path, *more: Any) -> tuple[Any, ...]:
    return ("--source", data / "images", "--model", data / "m.keras", *OPTIONS, *more)


def read_run(run: Path) -> dict[str, Any]:
    """Read what two runs in other folders must have in common."""
    files = {
        name: content
        for name, content in contents(run).items()
        if "tfevents" not in name and not name.startswith(".tmp")
    }
    manifest = json.loads(files.pop("run.json"))
    del manifest["ray_embed"]["checksum"], manifest["config"]["out"]
    return {**files, "run.json": manifest}


def assert_same_runs(found: Path, expected: Path) -> None:
    one, other = read_run(found), read_run(expected)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def times(run: Path) -> dict[str, int]:
    return {
        str(path.relative_to(run)): path.stat().st_mtime_ns
        for kind in ("features", "rejects", "thumbnails", "encoder")
        for path in sorted((run / kind).iterdir())
    }


def test_runs_are_those_of_single_runs(data, ray_embed, tmp_path):
    result = ray_embed(
        "sweep", *arguments(data, "--weights", data / "epoch-*.weights.h5", "--out", "s")
    )
    assert result.code == 0, result.err
    for epoch in EPOCHS:
        alone = ray_embed(
            "run", *arguments(data, "--weights", data / f"{epoch}.weights.h5", "--out", epoch)
        )
        assert alone.code == 0, alone.err
        assert_same_runs(tmp_path / "s" / epoch, tmp_path / epoch)
    # The runs are listed and compared, in the order of the epochs.
    found = [result.out.index(f"epoch-{number} ") for number in (2, 9, 10)]
    assert found == sorted(found)
    assert "silhouette" in result.out
    assert (tmp_path / "s" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    # Thumbnails and the sprite are stored once.
    for part in (tmp_path / "s" / "epoch-2" / "thumbnails").iterdir():
        assert part.stat().st_nlink == 3
    assert (tmp_path / "s" / "epoch-2" / "projector" / "sprite.png").stat().st_nlink == 3
    assert ray_embed("status", "--verify", "s/epoch-9").code == 0


def test_only_what_is_missing_is_processed(data, ray_embed, tmp_path):
    first = arguments(data, "--weights", data / "epoch-2.weights.h5", "--out", "s")
    assert ray_embed("sweep", *first).code == 0
    before = times(tmp_path / "s" / "epoch-2")
    more = (*first, "--weights", data / "epoch-9.weights.h5")
    assert ray_embed("sweep", *more).code == 0
    assert times(tmp_path / "s" / "epoch-2") == before
    whole = read_results(tmp_path / "s" / "epoch-9")
    # What is missing of each run is its own.
    lost = [
        tmp_path / "s" / name / "features" / f"part-0000000{number}.parquet"
        for name, number in (("epoch-2", 0), ("epoch-9", 0), ("epoch-9", 2))
    ]
    for part in lost:
        part.unlink()
    assert ray_embed("sweep", *more).code == 0
    after = times(tmp_path / "s" / "epoch-2")
    assert {n for n in after if after[n] != before[n] and n.startswith("features")} == {
        "features/part-00000000.parquet"
    }
    assert read_results(tmp_path / "s" / "epoch-9") == whole
    for part in (tmp_path / "s" / "epoch-9" / "thumbnails").iterdir():
        assert part.stat().st_nlink == 2


def test_an_encoder_that_fails_does_not_stop_the_others(data, ray_embed, tmp_path):
    other = save_encoder(tmp_path / "other.keras", dimension=7)
    keras.models.load_model(other).save_weights(tmp_path / "epoch-3.weights.h5")
    weights = ("--weights", tmp_path / "epoch-3.weights.h5")
    result = ray_embed(
        "sweep",
        *arguments(data, "--out", "s", *weights, "--weights", data / "epoch-2.weights.h5"),
    )
    assert result.code == 1
    assert "epoch-3 failed" in result.err
    assert "(3, 3, 4, 7)" in result.err.replace("[", "(")
    assert package.load(tmp_path / "s" / "epoch-2").rows == 10
    assert not (tmp_path / "s" / "epoch-3" / "run.json").exists()
    result = ray_embed("sweep", *arguments(data, "--out", "t", *weights))
    assert result.code == 2
    assert "epoch-3.weights.h5" in result.err


@pytest.fixture
def special(tmp_path: Path) -> Path:
    """Write encoders that fail on a white image, and images, the sixth of which is white."""
    (tmp_path / "my_failing.py").write_text(FAILING)
    images = make_folder(tmp_path / "images", {"cat": 10})
    Image.new("RGB", (8, 8), "white").save(images / "cat" / "0005.png")
    return images


def test_an_encoder_that_fails_on_an_image_does_not_stop_the_others(special, ray_embed, tmp_path):
    result = ray_embed(
        *("sweep", "--source", special, *OPTIONS, "--image-size", "8,8", "--out", "s"),
        *("--model", "my_failing:fails", "--model", "my_failing:works"),
    )
    assert result.code == 1, result.err
    assert "fails failed: shard 1: the encoder failed" in result.err
    assert "a white image" in result.err
    assert package.load(tmp_path / "s" / "works").rows == 10


@pytest.mark.slow
def test_an_image_that_kills_one_encoder_is_embedded_by_the_others(special, ray_embed, tmp_path):
    result = ray_embed(
        *("sweep", "--source", special, *OPTIONS, "--image-size", "8,8", "--out", "s"),
        *("--model", "my_failing:dies", "--model", "my_failing:works", "--max-attempts", 1),
    )
    assert result.code == 0, result.err
    assert package.load(tmp_path / "s" / "works").rows == 10
    dies = package.load(tmp_path / "s" / "dies")
    assert (dies.rows, dies.rejects_by_reason) == (9, {"crashes the process": 1})
    # The sprites show different images.
    sprites = [tmp_path / "s" / name / "projector" / "sprite.png" for name in ("works", "dies")]
    assert sprites[0].read_bytes() != sprites[1].read_bytes()


FAILING = """
import os

import keras
import tensorflow as tf


def fail(images):
    if images.min((1, 2, 3)).max() > 0.99:
        raise ValueError("a white image")
    return images.mean((1, 2))


def die(images):
    if images.min((1, 2, 3)).max() > 0.99:
        os._exit(1)
    return images.mean((1, 2))


def works():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalMaxPooling2D()])


class Calls(keras.Model):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, images):
        means = tf.numpy_function(self.function, [images], tf.float32)
        return tf.ensure_shape(means, (None, 3))


def fails():
    return Calls(fail)


def dies():
    return Calls(die)
"""


@pytest.mark.slow
def test_a_sweep_that_is_killed_at_any_moment_goes_on_with_the_same_bytes(
    data, ray_embed_process, tmp_path
):
    words = arguments(data, "--weights", data / "epoch-*.weights.h5", "--out", "s")
    command = [sys.executable, "-m", "ray_embed", "sweep", *map(str, words)]
    random = np.random.default_rng(1)
    for _ in range(4):
        process = subprocess.Popen(
            command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            process.wait(random.uniform(6, 14))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert ray_embed_process("sweep", *words).code == 0
    for epoch in EPOCHS:
        weights = data / f"{epoch}.weights.h5"
        alone = arguments(data, "--weights", weights, "--out", epoch)
        assert ray_embed_process("run", *alone).code == 0
        assert_same_runs(tmp_path / "s" / epoch, tmp_path / epoch)


def test_models_with_other_pixels_and_sets_of_layers(data, ray_session, tmp_path):
    large = save_encoder(tmp_path / "large.keras", side=24)
    config = RunConfig(
        sources={"images": str(data / "images")},
        model="-",
        out=str(tmp_path / "s"),
        shard_size=4,
        actors=1,
        cpus_per_actor=1,
    )
    models = [data / "m.keras", large]
    runs = package.sweep(config, models=models, layers=[["early"], ["early", "late"]])
    assert list(runs) == ["m-early", "m-early_late", "large-early", "large-early_late"]
    for name, run in runs.items():
        model, _, layers = name.partition("-")
        alone = config.model_dump(include={"shard_size", "actors", "cpus_per_actor"})
        alone |= {"model": str(models[model == "large"]), "layers": tuple(layers.split("_"))}
        package.run(RunConfig(sources=config.sources, out=str(tmp_path / name), **alone))
        assert_same_runs(Path(run.path), tmp_path / name)


@pytest.mark.parametrize("function", ["Sequence", "generate"])
def test_datasets_are_read_once(data, ray_embed, tmp_path, function):
    shutil.copy(PROJECT / "my_sources.py", tmp_path)
    given = arguments(data)[2:]
    given += ("--source", f"d=my_sources:{function}")
    given += ("--source-kwargs", json.dumps({"d": {"folder": str(data / "images")}}))
    weights = [data / "epoch-2.weights.h5", data / "epoch-9.weights.h5"]
    swept = ("sweep", *given, "--weights", weights[0], "--weights", weights[1], "--out", "s")
    assert ray_embed(*swept).code == 0
    assert ray_embed("run", *given, "--weights", weights[1], "--out", "alone").code == 0
    assert_same_runs(tmp_path / "s" / "epoch-9", tmp_path / "alone")
    (tmp_path / "s" / "epoch-9" / "features" / "part-00000001.parquet").unlink()
    assert ray_embed(*swept).code == 0
    assert_same_runs(tmp_path / "s" / "epoch-9", tmp_path / "alone")


def test_nothing_to_sweep_over_is_an_error(data, ray_embed):
    result = ray_embed("sweep", *arguments(data, "--weights", "nowhere/*.h5"))
    assert result.code == 2
    assert "--weights nowhere/*.h5: no file or folder matches" in result.err


def test_folders_of_other_runs_are_not_touched(data, ray_embed, tmp_path):
    swept = arguments(data, "--weights", data / "epoch-*.weights.h5", "--out", "s")
    (tmp_path / "s" / "epoch-9").mkdir(parents=True)
    (tmp_path / "s" / "epoch-9" / "thesis.txt").write_text("mine")
    result = ray_embed("sweep", *swept)
    assert result.code == 1
    assert "epoch-9 failed" in result.err
    assert [path.name for path in (tmp_path / "s" / "epoch-9").iterdir()] == ["thesis.txt"]
    assert package.load(tmp_path / "s" / "epoch-10").rows == 10


def test_errors_of_all_encoders_are_raised(ray_session, tmp_path):
    make_folder(tmp_path / "images", {"cat": 2})
    sources = {"a": str(tmp_path / "images")}
    config = RunConfig(sources=sources, model="-", out=str(tmp_path / "s"))
    with pytest.raises(InputError, match=r"(?s)all 2 encoders failed:.*one\.keras.*two\.keras"):
        package.sweep(config, models=["one.keras", "two.keras"])


@pytest.mark.slow
def test_a_sweep_on_two_nodes_writes_the_same_runs(data, ray_embed_process, tmp_path):
    with start_cluster((1, 0), (1, 0)) as cluster:
        weights = ("--weights", data / "epoch-*.weights.h5")
        result = ray_embed_process(
            *("sweep", *arguments(data, *weights, "--out", tmp_path / "s")),
            *("--address", cluster.address, "--actors", 2),
        )
    assert result.code == 0, result.err
    for epoch in EPOCHS:
        weights = ("--weights", data / f"{epoch}.weights.h5")
        assert ray_embed_process("extract", *arguments(data, *weights, "--out", epoch)).code == 0
        swept = read_results(tmp_path / "s" / epoch)
        alone = read_results(tmp_path / epoch)
        assert alone.items() <= swept.items()
