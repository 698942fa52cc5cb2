# SPDX-License-Identifier: Apache-2.0
"""The logic of the benchmarks: what they compare, and how they tell it."""

import functools
import json
import re
import runpy
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    # The scripts find each other by the folder they are in.
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def test_agreement_is_measured_in_units_of_what_is_allowed():
    import agreement

    expected = np.array([[1.0, -100.0], [0.0, 10.0]], np.float32)
    allowed = 1e-5 * np.abs(expected.astype(np.float64)) + 1e-5 * 100
    off = expected + np.array([[0.5, 0], [0, 0]]) * allowed
    assert agreement.violation(expected, expected) == 0
    assert agreement.violation(off, expected) == pytest.approx(0.5)
    assert agreement.violation(np.full_like(expected, np.nan), expected) == np.inf
    with pytest.raises(ValueError, match="shapes"):
        agreement.violation(expected[:1], expected)


def test_other_keys_are_no_agreement(tmp_path):
    import agreement

    (tmp_path / "keys.json").write_text(json.dumps(["a", "b"]))
    np.save(tmp_path / "features.npy", np.ones((2, 3), np.float32))
    same = (["a", "b"], np.ones((2, 3), np.float32))
    assert agreement.distance("loop", tmp_path, same) == 0
    with pytest.raises(ValueError, match="keys"):
        agreement.distance("loop", tmp_path, (["a", "c"], same[1]))
    some = (["b"], np.ones((1, 3), np.float32))
    assert agreement.distance_of_some("loop", tmp_path, 2, some) == 0
    with pytest.raises(ValueError, match="keys"):
        agreement.distance_of_some("loop", tmp_path, 3, some)


@pytest.mark.parametrize(
    ("target", "measured", "met"),
    [
        (">= 2.0", 2.0, True),
        (">= 2.0", 1.99, False),
        ("<= 1.3", 1.2, True),
        (">= 2.0", None, False),
    ],
)
def test_a_row_says_whether_its_target_is_met(target, measured, met):
    import rows

    assert rows.row("what", target, measured).met is met
    assert rows.row("what", None, measured).met is None


def test_rows_survive_the_last_line_and_are_drawn():
    import rows

    made = [rows.row("speed", ">= 2.0", 1.5), rows.row("size", None, 12_345.0, "MB")]
    assert rows.from_last_line(f"some text\n{rows.last_line(made)}\n") == made
    head, rule, speed, size = rows.table(made).splitlines()
    assert head.split() == ["what", "target", "measured"]
    assert set(rule) == {"-"}
    assert speed.split() == ["speed", ">=", "2.0", "x", "1.5", "x", "NOT", "MET"]
    assert size.endswith("12,345 MB")
    for text in ("", "no JSON", '{"other": 1}'):
        with pytest.raises(ValueError):
            rows.from_last_line(text)


def test_both_ends_are_left_out_of_the_rate_once_warm():
    import rates

    middle = [(100.0 + at, 5) for at in range(17)]
    ends = [(50.0, 5), (300.0, 5), (400.0, 5)]
    assert rates.once_warm(ends + middle) == pytest.approx(5)
    assert rates.once_warm([(1.0, 10)]) is None
    assert rates.once_warm([]) is None


def test_each_side_begins_in_its_turn():
    import sides

    assert [sides.turns("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert sorted(sides.turns("abc", 1)) == ["a", "b", "c"]


def test_a_process_is_measured(tmp_path):
    from processes import measure

    # A child that computes, of a process that does not.
    child = "import time\nwhile time.process_time() < 1: pass\ntime.sleep(1)"
    line = [
        sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); "
        "print('told'); print('{\"figure\": 3}')",
    ]
    found = measure("side", line, tmp_path / "work" / "out")
    assert found.said() == {"figure": 3}
    assert found.seconds > 0
    assert found.processes >= 2
    assert 0.9 < found.cpu_seconds < 3
    with pytest.raises(SystemExit):
        measure("side", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "out")


def test_growth_is_drawn(tmp_path):
    import growth
    from processes import Measured

    rounds = [
        Measured(name, "f", seconds, 100.0, None, 1, 0, "l", seconds)
        for name in ("loop", "ray-embed")
        for seconds in (1.0, 2.0)
    ]
    growth.draw(tmp_path / "growth.png", {100: rounds, 200: rounds[2:]})
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_corpus_mixes_others_among_plain_files(tmp_path):
    import mixed_inputs

    (tmp_path / "plain").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "plain" / name).write_text(name)
    (tmp_path / "other").write_text("other")
    root = mixed_inputs._mixed(
        tmp_path / "mixed", tmp_path / "plain", ["a.jpg", "b.jpg"], {"b.jpg": tmp_path / "other"}
    )
    assert [(root / name).read_text() for name in ("a.jpg", "b.jpg")] == ["a.jpg", "other"]


def test_mixed_inputs_are_held_against_extra_decoding():
    import mixed_inputs

    runs = {"plain": 1000.0, "corrupt": 1000.0, "large": 500.0, "dataset": 1000.0, "slow": 250.0}
    decoded = {"plain": 2000.0, "corrupt": 2500.0, "large": 2e3 / 3, "dataset": 2e3, "slow": 2e3}
    rows = mixed_inputs.rows_of(runs, decoded)
    assert [row.measured for row in rows] == pytest.approx([1, 1, 0.5, 1, 0.25, 0.25])
    assert [row.met for row in rows] == [None, True, None, True, None, False]


def test_what_breaks_first_follows_from_what_a_shard_costs():
    import scaling

    load = scaling.Load(8, images=500, driver=0.01, head=0.08, raylet=0.01, actor=0.1)
    said = scaling.arithmetic(256, 4000.0, load, a_shard=0.0005)
    assert "1,000,000,000 images on 256 GPUs that do 4,000 images a second each" in said
    # 256 × 4,000 images are 2,000 shards of 512, as many as the driver can do in a second.
    assert "2,000 shards a second of 0.50 ms each, 1.00 seconds a second of one core" in said
    assert "at most 2,000 shards a second: 1,024,000 images, 256 such GPUs" in said
    assert "--shard-size 1024: 0.50 seconds a second" in said
    assert "0.32 with 32, 2.56 with 256" in said


def test_wide_components_are_those_that_numpy_finds(tmp_path):
    import dataclasses

    import wide_pca

    assert wide_pca.shapes_of("3000x230400,20x9") == [(3000, 230400), (20, 9)]
    wide_pca.make_run(tmp_path, 60, 8200, 25)
    found = wide_pca.components(tmp_path, 1)()
    assert (found.method.name, found.vectors.shape) == ("gram", (50, 8200))
    assert wide_pca.right(tmp_path, found)
    off = dataclasses.replace(found, variances=found.variances * 1.001)
    assert not wide_pca.right(tmp_path, off)
    wide_pca.reading(tmp_path, 1)()


def test_timeline_names_functions_that_exist():
    path = Path(__file__).parent / "timeline" / "sitecustomize.py"
    calls = runpy.run_path(str(path))["CALLS"]
    for module, names in calls.items():
        for name in names:
            assert callable(functools.reduce(getattr, name.split("."), import_module(module)))


def test_timeline_tells_what_each_process_does(tmp_path):
    import sides
    from corpus import make_jpegs

    make_jpegs(tmp_path / "images", 4, 32)
    command = sides.ray_embed(tmp_path / "images", tmp_path / "run", model="models:tiny")
    done = subprocess.run(
        [sys.executable, "timeline", "--", *command],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    driver, builder, extractor = (
        next(text for text in done.stdout.split("\nprocess ") if name in text)
        for name in ("warm_ray._connect", "KerasBuilder.build", "worker.Extractor.extract")
    )
    assert "import tensorflow" not in driver
    for process in (builder, extractor):
        assert "import tensorflow" in process
        assert re.search(r"^\d+, \d+\.\d\d s of CPU until its last line: start ", process)


def test_batch_sizes_are_compared_with_each_other():
    import batch_sizes
    import keras

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    images = np.random.default_rng(0).random((5, 8, 8, 3), np.float32)
    rows = batch_sizes.measure(model, images, sizes=(1, 2, 5))
    assert list(rows) == ["Keras flatten", "Keras gap"]
    assert rows["Keras flatten"]["numbers"] == 5 * 6 * 6 * 4
    assert rows["Keras gap"]["bound"] < 1
    images = np.random.default_rng(0).random((16, 8, 8, 3), np.float32)
    engines = batch_sizes.measure(model, images, engines=True, sizes=(16,))
    assert {"Keras gap, float64", "folded gap", "folded flatten, float64"} <= set(engines)
    assert all(0 <= row["needed"] < 1e-6 for row in engines.values())
    assert engines["folded flatten, float64"]["relative"] > 0

    class Moved:
        """A model that moves with its batch size, by thirty millionths of its largest value."""

        def __call__(self, images, training):
            return np.float32([[1.0, 0.0]] * len(images)) + np.float32([0, 3e-5 * len(images)])

    moved = batch_sizes.measure(Moved(), images, sizes=(1, 2))["Keras gap"]
    assert moved["needed"] == pytest.approx(3e-5, rel=1e-3)
    assert moved["bound"] == pytest.approx(3, rel=1e-3)
    text = batch_sizes.table({"moved": {"Keras gap": moved}})
    assert "3.00" in text
    assert "beyond 1e-05·|g| + 1e-05·max|g|: 1 of 1 lines of plain Keras" in text
    assert "1e-05·|g| + 3e-05·max|g| would hold for all" in text


def test_the_reader_of_datasets_is_held_against_a_loop(capsys):
    import stream_reading

    rows = stream_reading.compare(records=40, side=8, rounds=1)
    assert [row.target for row in rows] == [None, ">= 0.8 x"]
    assert all(row.measured > 0 for row in rows)
    assert capsys.readouterr().out.count("images/s") == 4


@pytest.mark.slow
def test_families_of_encoders_are_compared_with_plain_keras(tmp_path):
    import encoders_zoo

    (line,) = encoders_zoo.compare("MobileNetV2", ["keras"], 32, tmp_path)
    assert "as Keras" in line
    assert "unit" in line
    assert "keras:mobilenet_v2" in line


def test_later_runs_are_measured(tmp_path):
    import corpus
    import second_run

    corpus.make_jpegs(tmp_path / "images", 4, 32)
    second_run.save_model("tiny", tmp_path / "tiny.keras")
    first, second = second_run.measure(
        tmp_path / "tiny.keras", [tmp_path / "images"] * 2, tmp_path / "out"
    )
    assert first["seconds"] > 0
    assert len(first["memory"]) == len(second["memory"]) == 2
    rows = second_run.speed_rows(512, [(10.0, 3.0, 6.0, 3.0), (9.0, 4.0, 7.0, 4.0)] * 2)
    assert [row.measured for row in rows] == pytest.approx([9.5, 3.5, 2.5])
    memories = [(100.0, 300.0 + run) for run in range(50)]
    rows = second_run.memory_rows(memories)
    assert [row.measured for row in rows] == pytest.approx([100, 0, 342, 100 * 25 / 317])


@pytest.mark.slow
def test_memory_does_not_grow_over_fifty_runs(tmp_path):
    import corpus
    import keras
    import second_run

    corpus.make_jpegs(tmp_path / "images", 16, 32)
    # With 7 MB of weights, a model that stays is noticed.
    layers = [
        keras.layers.Conv2D(8, 3, strides=2),
        keras.layers.Flatten(),
        keras.layers.Dense(1024),
    ]
    keras.Sequential([keras.Input((32, 32, 3)), *layers]).save(tmp_path / "model.keras")
    rows = second_run.memory_rows(
        second_run.measure_memory(
            tmp_path / "model.keras", tmp_path / "images", 50, tmp_path / "out"
        )
    )
    assert [row.met for row in rows if row.target] == [True, True], rows


def test_memory_of_encoders_is_measured_beside_the_estimate(capsys):
    import encoder_memory

    estimate, added = encoder_memory.measure("MobileNetV2", 32, "openvino")
    assert estimate > 30
    assert len(added) == encoder_memory.OPENED
    row = encoder_memory.make_row("tiny", 32, "openvino", 100.0, [900.0, 50.0, 150.0, 250.0])
    assert (row.measured, row.met) == (1.5, True)
    assert (
        capsys.readouterr().out == "tiny 32 openvino: estimated 100 MB, added 900, 50, 150, 250\n"
    )


def test_processes_are_busy_beside_a_side():
    import psutil
    import whole_process

    children = psutil.Process().children
    before = set(children())
    with whole_process.busy_processes(2):
        busy = set(children()) - before
        assert len(busy) == 2
        time.sleep(0.5)
        assert all(process.cpu_times().user > 0 for process in busy)
    assert set(children()) == before
    compared = whole_process.Compared(512, ("loop", "ray-embed"), busy=2)
    assert "beside 2 busy processes" in compared.rows()[0].what


def test_engines_are_compared_with_the_folded_graph(tmp_path, monkeypatch, capsys):
    import encoder_engines
    import models

    found = encoder_engines.measure(models.tiny(), tmp_path, rounds=1, seconds=0.0)
    assert len(found.engines) == 2
    assert 0 <= found.agreement <= 1
    assert min(found.chosen.images, found.folded.by_cpu) > 0
    chosen, folded = encoder_engines.Rate(30.0, 8.0), encoder_engines.Rate(20.0, 4.0)
    found = encoder_engines.Measured(("one", "two"), 0.25, chosen, folded)
    shown = encoder_engines.line("tiny", found).split()
    assert shown == ["tiny", "one,", "two", "0.250", "30.0", "20.0", "1.50", "2.00"]

    monkeypatch.setitem(sys.modules, "keras_hub", None)
    monkeypatch.setattr(sys, "argv", ["encoder_engines.py", "--only", "ViT-Ti (KerasHub)"])
    encoder_engines.main()
    assert capsys.readouterr().out.endswith("skipped: keras-hub is not installed\n")


def test_every_form_of_source_holds_the_same_images(tmp_path):
    import corpus
    import source_files
    import source_rivals
    import sources
    from support.opened import list_records

    from ray_embed import RunConfig
    from ray_embed.sources.open import open_sources

    corpus.make_jpegs(tmp_path / "images", 6, 32, classes=2)
    labels = {}
    for name in source_files.FORMS:
        source = source_files.make_form(name, tmp_path / "images", tmp_path)
        (opened,) = open_sources(RunConfig(sources={"train": source}, model="none.keras"))
        labels[name] = sorted(list_records(opened).rows["label"].to_pylist())
    assert set(map(tuple, labels.values())) == {("class_0",) * 3 + ("class_1",) * 3}

    out = tmp_path / "rival"
    source_rivals.run_datasets(
        str(tmp_path / "images-parquet/*.parquet"), out, "models:tiny", "eager", 32
    )
    assert len(next(out.glob("*.parquet")).read_bytes())
    seconds = {"folder": [2.0, 4.0], "tar": [3.0, 3.3], "ray-data-tar": [6.3]}
    assert [row.measured for row in sources.rows_of(6, seconds)] == pytest.approx([1.05, 2.0])


def test_planning_is_measured_in_every_layout(tmp_path):
    import planning

    for layout in planning.LAYOUTS:
        source = planning.make_source(tmp_path, 30, layout)
        assert planning.plan_here(source, tmp_path / "out").files == 30


@pytest.mark.slow
def test_a_sweep_is_held_against_single_runs_and_loops(tmp_path):
    import rows
    import sides

    command = sides.script("sweeping.py", "--work", tmp_path, "--quick", "--model", "models:tiny")
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr
    found = rows.from_last_line(done.stdout)
    assert [row.target for row in found] == [">= 3 x", ">= 8 x"]
    assert all(row.measured > 0 for row in found)


def test_runs_of_timm_models_are_held_against_a_script(tmp_path, capsys, monkeypatch):
    pytest.importorskip("timm", reason="needs the extra `timm`")
    import torch_encoders

    arguments = ["--work", str(tmp_path), "--models", "test_resnet", "--quick"]
    monkeypatch.setattr(sys, "argv", ["torch_encoders.py", *arguments])
    assert torch_encoders.main() == 0
    import rows

    found = rows.from_last_line(capsys.readouterr().out)
    assert found[0].what == "test_resnet, 64 images: the script's time over ray-embed's"
    assert found[0].measured > 0
    assert found[-1].measured > 0.9999


def test_features_of_other_images_are_no_agreement(tmp_path):
    import torch_encoders

    (tmp_path / "keys.json").write_text(json.dumps(["a", "b"]))
    np.save(tmp_path / "features.npy", np.float32([[1, 0], [0, 1]]))
    with pytest.raises(ValueError, match="no parts"):
        torch_encoders.compare(tmp_path, tmp_path)


def test_sizes_of_extras_are_measured(monkeypatch):
    import installed_sizes

    monkeypatch.setattr(installed_sizes, "ROUNDS", 1)
    monkeypatch.setitem(installed_sizes.IMPORTS, "base", ("json",))
    found = {row.what: row.measured for row in installed_sizes.list_rows(["pandas"])}
    assert found["base: packages"] > 30
    assert found["base: size"] > 500
    assert found["pandas: packages more"] >= 1
    assert 10 < found["pandas: size more"] < 500
    assert found["pandas: import pandas"] > 0
    assert {"tensorflow", "ray"} <= installed_sizes.find_packages(None)
    assert "onnx" in installed_sizes.find_packages("onnx") - installed_sizes.find_packages(None)
