# SPDX-License-Identifier: Apache-2.0
"""Several runs in one process: each has the features that it would have in a process of its own."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.sample_runs import read_results, save_encoder

from ray_embed import InputError, Run, RunConfig, run

_MODEL = """
import os
import keras

def make(scale=1.0):
    with open("processes.txt", "a") as file:
        file.write(f"{os.getpid()}\\n")
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, use_bias=False)])
"""
_POLICY = 'keras.config.set_dtype_policy("mixed_bfloat16")\n'


@pytest.fixture
def project(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a module with a model, its weights, and images."""
    import keras

    monkeypatch.chdir(tmp_path)
    # Its bytecode would hide a change within a second that keeps the size.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    Path("warm_model.py").write_text(_MODEL)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, use_bias=False)])
    model.save_weights("w.weights.h5")
    save_images(0)
    # The module has to be older than the process that imports it.
    time.sleep(0.2)
    return tmp_path


def save_images(seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez("images.npz", images=images, labels=np.arange(6))


def embed(out: str, **options: Any) -> Run:
    given = {"model": "warm_model:make", "weights": "w.weights.h5", "sources": "images.npz"}
    return run(RunConfig(**{**given, "out": out, **options}))


def list_processes() -> list[str]:
    return Path("processes.txt").read_text().split()


def test_model_of_a_function_has_the_same_layers_and_bytes(project: Path) -> None:
    first = embed("first", layers=("conv2d",))
    second = embed("second", layers=("conv2d",))
    assert len(set(list_processes())) == 1
    assert read_results(Path(first.path)) == read_results(Path(second.path))
    # Resuming compares the encoder with that of the first start.
    assert embed("first", layers=("conv2d",)).rows == 6


def test_model_with_initial_weights_gets_a_new_process(project: Path) -> None:
    Path("warm_model.py").write_text("import keras\nkeras.utils.set_random_seed(1)\n" + _MODEL)
    first, second = (embed(out, weights=None) for out in ("first", "second"))
    assert len(set(list_processes())) == 2
    assert read_results(Path(first.path)) == read_results(Path(second.path))


def test_changed_module_is_imported_again(project: Path) -> None:
    first = embed("first").to_numpy()[0]
    Path("warm_model.py").write_text(_MODEL.replace("use_bias=False", "use_bias=False, strides=2"))
    second = embed("second").to_numpy()[0]
    assert not np.allclose(first, second)


def test_settings_of_a_module_hold_for_every_run(project: Path) -> None:
    Path("warm_model.py").write_text(_MODEL.replace("def make", f"{_POLICY}\ndef make"))
    time.sleep(0.2)
    first, second = (embed(out).to_numpy()[0] for out in ("first", "second"))
    np.testing.assert_array_equal(first, second)
    Path("warm_model.py").write_text(_MODEL)
    assert not np.allclose(embed("third").to_numpy()[0], first, rtol=1e-5)


def test_replaced_files_are_read_again(project: Path) -> None:
    options = {"model": "m.keras", "weights": None, "image_size": (16, 16)}
    save_encoder(Path("m.keras"), seed=1)
    first = embed("first", **options).to_numpy()[0]
    save_images(1)
    second = embed("second", **options).to_numpy()[0]
    save_encoder(Path("m.keras"), seed=2)
    third = embed("third", **options).to_numpy()[0]
    assert not np.allclose(first, second)
    assert not np.allclose(second, third)


def test_redefined_dataset_is_read(project: Path) -> None:
    def make_dataset(value: int) -> Any:
        class Images:
            def __len__(self) -> int:
                return 3

            def __getitem__(self, position: int) -> tuple[np.ndarray, int]:
                return np.full((8, 8, 3), value + position, np.uint8), position

        return Images()

    first = embed("first", sources={"a": make_dataset(0)}).to_numpy()[0]
    second = embed("second", sources={"a": make_dataset(100)}).to_numpy()[0]
    assert not np.allclose(first, second)


def test_run_after_bad_input_has_a_clean_process(project: Path) -> None:
    with pytest.raises(InputError, match="no_layer"):
        embed("first", layers=("no_layer",))
    assert embed("second", layers=("conv2d",)).rows == 6


def test_other_folder_has_its_own_modules(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embed("first").to_numpy()[0]
    Path("other").mkdir()
    for name in ("w.weights.h5", "images.npz"):
        os.link(name, f"other/{name}")
    Path("other/warm_model.py").write_text(_MODEL.replace("use_bias", "strides=2, use_bias"))
    monkeypatch.chdir(tmp_path / "other")
    assert not np.allclose(embed("second").to_numpy()[0], first)
