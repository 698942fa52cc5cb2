# SPDX-License-Identifier: Apache-2.0
"""Initial weights for a trained model, and the baseline of a run with such weights."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from support.containers import sample, write_parquet, write_tar
from support.encoders import PROJECT, my_encoders, spec
from support.pictures import make_folder
from support.sample_runs import config, contents, part_files, read_parts

import ray_embed as package
from ray_embed.baseline import _make_config as make_config
from ray_embed.baseline import extract_baseline
from ray_embed.encoders.build import build
from ray_embed.runs.identity import name_object
from ray_embed.storage import manifest
from ray_embed.storage.filesystem import Folder

if str(PROJECT) not in sys.path:
    sys.path.append(str(PROJECT))

import my_random


def weights(model, **options):
    encoder = build(spec(model, engine="tensorflow", weights="random", **options))
    second = build(spec(model, engine="tensorflow", weights="random", **options))
    assert encoder.weights_digest == second.weights_digest
    return encoder.weights


def assert_initial(found, trained):
    """Check that kernels are Glorot's and of this seed, and that vectors are zeros or ones."""
    assert [value.shape for value in found] == [value.shape for value in trained]
    kernels = 0
    for new, old in zip(found, trained, strict=True):
        assert not np.array_equal(new, old)
        if new.ndim > 1:
            places = int(np.prod(new.shape[:-2]))
            limit = np.sqrt(6 / (places * (new.shape[-2] + new.shape[-1])))
            assert np.abs(new).max() <= limit
            assert np.std(new) == pytest.approx(limit / np.sqrt(3), rel=0.25)
            kernels += 1
        else:
            assert np.all(new == new[0])
            assert new[0] in (0, 1)
    assert kernels > 0


@pytest.mark.parametrize(
    ("library", "name"),
    [("keras", "encoder.keras"), ("tf_keras", "encoder.h5"), ("tf_keras", "encoder")],
)
@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_model_file_gets_initial_weights(tmp_path, library, name, kind):
    model = getattr(my_encoders, kind)(library)
    model.save(tmp_path / name)
    assert_initial(weights(tmp_path / name), model.get_weights())


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_callable_gets_initial_weights(library, kind):
    trained = getattr(my_encoders, kind)(library).get_weights()
    found = weights(f"my_encoders:{kind}", model_kwargs={"library": library})
    assert_initial(found, trained)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_model_inside_an_object_gets_initial_weights(library):
    kwargs = {"input_img_shape": (16, 16, 3), "library": library}
    found = weights("my_encoders:AutoEncoder", model_kwargs=kwargs, submodel="forward_model")
    trained = my_encoders.AutoEncoder(**kwargs).forward_model.get_weights()
    assert_initial(found, trained)


@pytest.mark.parametrize("name", ["SubclassedKeras3", "SubclassedTfKeras"])
def test_subclassed_model_is_made_by_its_code(name):
    model = getattr(my_encoders, name)()
    model(np.zeros((1, 16, 16, 3), np.float32))
    found = weights(f"my_encoders:{name}", image_size=(16, 16))
    assert_initial(found[:2], [value + 1 for value in model.get_weights()[:2]])


def test_inner_models_get_initial_weights_but_normalization_stays():
    trained = my_random.nested().get_weights()
    found = weights("my_random:nested")
    # Its mean, variance and count come first.
    for new, old in zip(found[:3], trained[:3], strict=True):
        np.testing.assert_array_equal(new, old)
    assert found[0].mean() > 3
    assert_initial(found[3:], trained[3:])


def test_layer_that_cannot_be_cloned_is_made_by_the_callable():
    found = weights("my_random:unsaid")
    assert_initial(found, [value + 1 for value in found])


def test_other_seeds_of_the_process_do_not_matter():
    first = weights("my_encoders:random_encoder")
    keras.utils.set_random_seed(77)
    np.testing.assert_equal(weights("my_encoders:random_encoder"), first)


def assert_refused(model, said, **options):
    with pytest.raises(package.InputError, match=said) as caught:
        build(spec(model, weights="random", image_size=(16, 16), **options))
    assert str(caught.value).startswith("--weights random: ")


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [("my_encoders:subclassed", {}), ("my_random:unsaid", {"trained": True})],
)
def test_callable_with_trained_weights_that_cannot_be_cloned(model, kwargs):
    assert_refused(model, "the same weights each time: trained ones", model_kwargs=kwargs)


def test_saved_model_without_layers_is_refused(tmp_path):
    my_encoders.functional(augment=False).export(tmp_path / "exported", verbose=False)
    assert_refused(tmp_path / "exported", "a SavedModel without Keras layers")


def test_saved_model_of_a_subclassed_model_is_refused(tmp_path):
    my_encoders.subclassed("tf_keras").save(tmp_path / "saved")
    assert_refused(tmp_path / "saved", "cannot be given initial weights")


def test_file_named_random_is_given_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = my_encoders.sequential()
    trained.save_weights("random.weights.h5")
    os.rename("random.weights.h5", "random.h5")
    found = build(spec("my_encoders:random_encoder", weights="random"))
    assert found.weights
    with pytest.raises(package.InputError, match="no"):
        build(spec("my_encoders:random_encoder", weights="./random"))


# --- the baseline of a run -----------------------------------------------------------------------


@pytest.fixture
def project(ray_session, tmp_path, monkeypatch):
    """Return the folder that commands are started in, with the user's modules."""
    for module in PROJECT.glob("*.py"):
        shutil.copy(module, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def features_of(run):
    return run.to_numpy()[0]


def assert_baseline(run, baseline, said):
    assert baseline.path == f"{run.path}/random-weights"
    assert said == [f"baseline with random weights: {baseline.path}"]
    columns = ["index", "key", "label", "split"]
    assert baseline.to_table().select(columns) == run.to_table().select(columns)
    assert features_of(baseline).shape == features_of(run).shape
    assert not np.isclose(features_of(baseline), features_of(run)).all(axis=1).any()
    assert json.loads(Path(baseline.path, "run.json").read_text())["config"]["weights"] == "random"


def test_label_column_is_given_to_the_baseline_only_if_it_was_chosen(tmp_path):
    (tmp_path / "m.keras").touch()
    recorded = config({"s": tmp_path}, tmp_path / "m.keras", tmp_path / "run").model_dump()

    def given_to_baseline(options):
        made = make_config(str(tmp_path), options)
        return made.label_column if "label_column" in made.model_fields_set else None

    for column in (None, "label", "kind"):
        assert given_to_baseline(recorded | {"label_column": column}) == column
    # Earlier runs recorded the default.
    del recorded["splits_from_folders"]
    assert given_to_baseline(recorded | {"label_column": "label"}) is None
    assert given_to_baseline(recorded | {"label_column": "kind"}) == "kind"


def test_baseline_of_a_model_file_and_folders(project):
    make_folder(project / "valid", {"a": 5, "b": 3})
    make_folder(project / "test", {"a": 2, "b": 2}, seed=9)
    (project / "valid" / "a" / "broken.png").write_bytes(b"no picture")
    my_encoders.functional().save("encoder.keras")
    options = {"layers": ("first", "second"), "pool": "gmp", "scale": "symmetric"}
    sources = {"valid": Path("valid"), "test": Path("test")}
    run = package.run(config(sources, Path("encoder.keras"), Path("run"), **options))
    said = []
    baseline = extract_baseline(run.path, said.append)
    assert said == ["baseline with random weights: run/random-weights"]
    assert baseline.layers == ("first", "second")
    run_table, baseline_table = (read_parts(Path(result.path)) for result in (run, baseline))
    assert baseline_table.drop(["feature_first", "feature_second"]) == run_table.drop(
        ["feature_first", "feature_second"]
    )
    for column in ("feature_first", "feature_second"):
        assert baseline_table[column].type == run_table[column].type
        assert baseline_table[column] != run_table[column]
    assert baseline.rejects == run.rejects == 1
    # Compare with a clone made by Keras, pooled by hand.
    model = my_encoders.functional()
    keras.utils.set_random_seed(0)
    clone = keras.models.clone_model(model)
    image = keras.utils.image_dataset_from_directory(
        "test", image_size=(16, 16), shuffle=False, verbose=False
    )
    pixels = next(iter(image))[0].numpy() / 127.5 - 1
    second = np.asarray(clone(pixels, training=False)).max(axis=(1, 2))
    found, _ = baseline.to_numpy("second")
    np.testing.assert_allclose(found[-4:], second, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_baseline_of_callables_and_weights(project):
    trained = my_encoders.AutoEncoder((16, 16, 3), seed=5)
    trained.forward_model.save_weights("run7.weights.h5")
    run = package.extract(
        config(
            {"valid": "my_random:dataset", "test": "my_random:dataset"},
            "my_encoders:AutoEncoder",
            Path("run"),
            model_kwargs={"input_img_shape": (16, 16, 3)},
            submodel="forward_model",
            weights="run7.weights.h5",
            source_kwargs={"valid": {"count": 6, "seed": 1}, "test": {"count": 5, "seed": 2}},
        )
    )
    said = []
    baseline = extract_baseline(run.path, said.append)
    assert_baseline(run, baseline, said)
    assert baseline.to_table()["key"].to_pylist()[:2] == ["1/0.png", "1/1.png"]


# --- refused baselines ---------------------------------------------------------------------------


def assert_refused_baseline(run, said):
    before = contents(Path(run.path))
    with pytest.raises(package.InputError) as caught:
        extract_baseline(run.path, [].append)
    assert re.search(said, str(caught.value))
    assert contents(Path(run.path)) == before
    return str(caught.value)


def test_baseline_opens_files_and_patterns_again(project):
    data = make_folder(project / "data", {"a": 4, "b": 2})
    paths = sorted(data.rglob("*.png"))
    rows = [f"{path.relative_to(project)},{path.parent.name}" for path in paths]
    (project / "list.csv").write_text("\n".join(["path,label", *rows, ""]))
    # Other files beside them, which belong to no source.
    for name in ("d.parquet", "other.parquet"):
        write_parquet(project / name, range(len(name)))
    for number in range(3):
        write_tar(project / f"s-{number}.tar", [sample(number, 1)])
    my_encoders.sequential().save("encoder.keras")
    sources = {"list": "list.csv", "rows": "d.parquet", "tars": "s-{0..1}.tar"}
    run = package.extract(config(sources, Path("encoder.keras"), Path("run")))
    baseline = extract_baseline(run.path, [].append)
    assert (run.rows, baseline.rows) == (17, 17)
    columns = ["split", "key", "label"]
    assert baseline.to_table().select(columns).equals(run.to_table().select(columns))


@pytest.mark.slow
def test_missing_and_changed_inputs_and_resuming(project):
    data = make_folder(project / "valid", {"a": 8, "b": 4})
    my_encoders.sequential().save("encoder.keras")
    run = package.extract(config({"valid": data}, Path("encoder.keras"), Path("run")))
    elsewhere = project / "elsewhere"
    for gone, was in (
        (project / "encoder.keras", "--model was 'encoder.keras'"),
        (data, f"--source valid was '{data}'"),
    ):
        gone.rename(elsewhere)
        said = assert_refused_baseline(run, "Run the command in the original working directory")
        assert said.startswith(f"run/run.json: {was}, which is not available")
        elsewhere.rename(gone)
    # A second call does only what is missing.
    baseline = extract_baseline(run.path, [].append)
    before = contents(Path(baseline.path))
    parts = part_files(Path(baseline.path))
    assert len(parts) == 3
    times = [part.stat().st_mtime_ns for part in parts]
    extract_baseline("run", [].append)
    assert contents(Path(baseline.path)) == before
    assert [part.stat().st_mtime_ns for part in parts] == times
    parts[1].unlink()
    extract_baseline(run.path, [].append)
    assert contents(Path(baseline.path)) == before
    assert [part.stat().st_mtime_ns for part in parts][::2] == times[::2]
    # The run itself has not changed.
    assert package.extract(config({"valid": data}, Path("encoder.keras"), Path("run"))).rows == 12
    shutil.rmtree(baseline.path)
    make_folder(data, {"c": 1})
    with pytest.raises(package.InputError, match=r"sources have changed .*source valid"):
        extract_baseline(run.path, [].append)


@pytest.mark.slow
def test_python_objects_and_models_without_initial_weights(project):
    """Check that such runs have no baseline, and that nothing is written."""
    folder = make_folder(project / "valid", {"a": 3, "b": 2})
    given = config({"valid": folder}, "my_encoders:subclassed", Path("run"), image_size=(16, 16))
    options = given.model_dump() | {"sources": {"valid": my_random.dataset(5, 1)}}
    run = package.extract(package.RunConfig(**options))
    assert_refused_baseline(run, "--source valid was '.*or module:callable")
    folder_of_run = Folder.open(run.path)
    content = manifest.read_run(folder_of_run)
    # `write_run` adds the mark.
    del content["ray_embed"]
    for change, said in (
        # A model object is recorded by its class.
        ({"model": name_object(my_encoders.sequential())}, "--model was '.*or module:callable"),
        ({"sources": {"valid": str(folder)}}, "the same weights each time"),
    ):
        changed = content | {"config": content["config"] | change}
        manifest.write_run(folder_of_run, changed, package.__version__)
        assert_refused_baseline(run, said)


def test_random_weights_on_the_command_line(ray_embed, tmp_path):
    make_folder(tmp_path / "valid", {"a": 3, "b": 2})
    my_encoders.sequential().save(tmp_path / "encoder.keras")
    options = ("--source", "valid", "--model", "encoder.keras", "--weights", "random")
    result = ray_embed("extract", *options)
    assert result.code == 0, result.err
    assert package.load("runs/encoder-random").rows == 5
