# SPDX-License-Identifier: Apache-2.0
"""Exactly once, in order, and the same bytes: over shards, actors, and runs that go on."""

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.command import Command, Result
from support.pictures import make_folder, picture
from support.sample_runs import read_results

import ray_embed as package
from ray_embed import InputError, RunConfig

H, W = 6, 5
SHARD = 4
REASONS = {
    "missing",
    "unreadable",
    "empty file",
    "not an image",
    "unsupported image",
    "corrupt image",
    "too many pixels",
    "too many scans",
    "not finite",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.keras"
    keras.utils.set_random_seed(3)
    keras.Sequential([keras.Input((H, W, 3)), keras.layers.Conv2D(4, 3), keras.layers.ReLU()]).save(
        path
    )
    return path


def options(model: Path, *more: Any, actors: int = 1) -> tuple[Any, ...]:
    return (
        "--model", model, "--engine", "tensorflow", "--cpus-per-actor", 1, "--actors", actors,
        "--batch-size", 3, "--shard-size", SHARD, *more,
    )  # fmt: skip


def times(run: Path | str) -> dict[str, int]:
    files = (Path(run) / "features").iterdir()
    return {file.name: file.stat().st_mtime_ns for file in files}


def rows(run: Path | str, kind: str) -> pa.Table:
    parts = sorted((Path(run) / kind).glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits with broken files in the middle: a folder of 18, and a listing of 7."""
    base = tmp_path_factory.mktemp("sources")
    make_folder(base / "valid", {"a": 7, "b": 11})
    for name, content in {
        "a/0002.png": b"",
        "a/0003.png": b"text",
        # One whole shard, and the last record.
        "b/0001.png": b"text",
        "b/0002.png": b"",
        "b/0003.png": b"text",
        "b/0004.png": b"\x89PNG\r\n\x1a\n cut",
        "b/0010.png": b"",
    }.items():
        (base / "valid" / name).write_bytes(content)
    lines = [f"valid/a/000{i}.png,{i}" for i in (6, 3, 0, 9, 1, 5, 4)]
    (base / "test.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    return base


BROKEN = {2, 3, 8, 9, 10, 11, 17, 18 + 1, 18 + 3}


def finished(ray_embed: Command, sources: Path, model: Path, *more: Any, **how: Any) -> Result:
    result = ray_embed(
        "run", "--source", sources / "valid", "--source", sources / "test.csv",
        *options(model, *more, **how),
    )  # fmt: skip
    assert result.code == 0, result.err
    return result


def test_exactly_once_with_any_number_of_actors_and_stops(ray_embed, sources, model, tmp_path):
    result = finished(ray_embed, sources, model, "--out", "one")
    assert "25 records" in result.out
    assert "16 embedded" in result.out
    assert "9 rejected" in result.out
    for shown in ("not an image", "empty file", "one/features", "ray-embed view one"):
        assert shown in result.out

    features, aside = rows("one", "features"), rows("one", "rejects")
    assert features["index"].to_pylist() == [i for i in range(25) if i not in BROKEN]
    assert aside["index"].to_pylist() == sorted(BROKEN)
    assert set(aside["reason"].to_pylist()) <= REASONS
    assert aside.schema.names == ["index", "key", "split", "reason"]
    assert rows("one", "thumbnails")["index"].equals(features["index"])
    # Labels and keys stay with their picture: the same picture in both splits, the same features.
    names = sorted(
        path.relative_to(sources / "valid") for path in (sources / "valid").rglob("*.png")
    )
    by_key: dict[str, list[float]] = {}
    for row in features.to_pylist():
        if row["split"] == "valid":
            assert row["key"] == str(names[row["index"]])
            assert row["label"] == row["key"][0]
            by_key[f"valid/{row['key']}"] = row["feature"]
        else:
            assert row["key"] == f"valid/a/000{row['label']}.png"
            np.testing.assert_allclose(row["feature"], by_key[row["key"]], rtol=1e-5, atol=1e-6)
    assert len({tuple(feature) for feature in by_key.values()}) == len(by_key)
    # Seven parts, one of them without a row; rejects only where a shard has some.
    whole = read_results(Path("one"))
    counts = [pq.read_metadata(file).num_rows for file in sorted(Path("one/features").iterdir())]
    assert counts == [2, 4, 0, 4, 1, 2, 3]
    assert [name for name in whole if name.startswith("rejects")] == [
        f"rejects/part-{n:08d}.parquet" for n in (0, 2, 4, 5)
    ]
    assert not any(Path("one/.tmp").glob("*"))

    # Two actors write the same bytes.
    finished(ray_embed, sources, model, "--out", "two", actors=2)
    assert read_results(Path("two")) == whole

    # Run again it does nothing; where parts are gone, only those, and what a killed try left.
    before = times("one")
    result = finished(ray_embed, sources, model, "--out", "one")
    assert "25 records" in result.out
    assert times("one") == before
    assert read_results(Path("one")) == whole
    for number in (0, 2, 6):
        Path(f"one/features/part-{number:08d}.parquet").unlink()
    Path("one/rejects/part-00000000.parquet").unlink()
    Path("one/thumbnails/part-00000006.parquet").unlink()
    shutil.copy("one/rejects/part-00000002.parquet", "one/rejects/part-00000006.parquet")
    shutil.rmtree("one/projector")
    finished(ray_embed, sources, model, "--out", "one", actors=2)
    assert read_results(Path("one")) == whole
    for name, time in before.items():
        assert (times("one")[name] == time) == (int(name[5:13]) not in (0, 2, 6))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "ways"),
    [
        ("tensorflow", [(512, 1), (1, 2), (7, 3)]),
        ("auto", [(512, 1), (1, 2)]),
    ],
)
def test_any_shard_size_and_number_of_actors_gives_the_same_features(
    ray_embed, sources, model, tmp_path, engine, ways
):
    found = []
    for size, actors in ways:
        out = f"{size}-shards"
        finished(
            ray_embed, sources, model, "--out", out, "--shard-size", size, "--engine", engine,
            actors=actors,
        )  # fmt: skip
        found.append(rows(out, "features"))
    values = [np.array(table["feature"].to_pylist()) for table in found]
    for table, features in zip(found, values, strict=True):
        assert table.drop_columns("feature").equals(found[0].drop_columns("feature"))
        assert np.abs(features - values[0]).max() <= 1e-6 * np.abs(values[0]).max()


def test_other_configuration_or_source_needs_overwrite(ray_embed, model, tmp_path):
    make_folder(tmp_path / "valid", {"a": 3, "b": 3})
    given = ("--source", "valid", "--out", "r")
    result = ray_embed("extract", *given, *options(model))
    assert result.code == 0, result.err
    before = read_results(Path("r"))

    result = ray_embed("extract", *given, *options(model, "--pool", "gmp", "--scale", "none"))
    assert result.code == 2
    for token in ("r", "gap", "gmp", "scale", "none", "--overwrite"):
        assert token in result.err
    assert "batch" not in result.err

    result = ray_embed("extract", *given, "--source", "more=valid", *options(model))
    assert result.code == 2
    assert "source more: was added" in result.err
    assert "{" not in result.err

    # A file more, and another model.
    picture(77).save(tmp_path / "valid" / "a" / "0001-more.png")
    result = ray_embed("extract", *given, *options(model))
    assert result.code == 2
    for token in ("a/0001-more.png", "--overwrite"):
        assert token in result.err
    assert read_results(Path("r")) == before

    (tmp_path / "r" / "stray.txt").write_text("left over")
    result = ray_embed("extract", *given, *options(model, "--pool", "gmp", "--overwrite"))
    assert result.code == 0, result.err
    assert "7 records" in result.out
    assert not (tmp_path / "r" / "stray.txt").exists()
    assert len(package.load("r").to_table()) == 7
    assert (tmp_path / "valid" / "a" / "0000.png").exists()


@pytest.mark.slow
def test_a_run_goes_on_with_the_threads_it_was_begun_with(ray_embed, model, tmp_path):
    make_folder(tmp_path / "valid", {"a": 9})
    given = ("--source", "valid", "--out", "r", "--model", model, "--engine", "tensorflow")
    given += ("--batch-size", 3, "--shard-size", SHARD)
    assert ray_embed("run", *given, "--cpus-per-actor", 2).code == 0
    before = read_results(Path("r"))
    (tmp_path / "r" / "features" / "part-00000001.parquet").unlink()

    # As if the nodes were others now, which have more cores.
    result = ray_embed("run", *given)
    assert result.code == 0, result.err
    assert read_results(Path("r")) == before

    result = ray_embed("run", *given, "--cpus-per-actor", 3)
    assert result.code == 2
    assert "threads per actor: was 2, is 3" in result.err


def test_a_single_record_and_several_actors(ray_embed, model, tmp_path):
    make_folder(tmp_path / "valid", {"a": 3})
    limited = options(model, "--out", "r", "--limit", 1, actors=3)
    result = ray_embed("run", "--source", "valid", *limited)
    assert result.code == 0, result.err
    assert "1 records" in result.out or "1 record" in result.out
    run = package.load("r")
    features, labels = run.to_numpy()
    assert features.shape == (1, 4)
    assert list(labels) == ["a"]
    # TensorBoard lists no tensor of one row: the user must be told.
    assert "TensorBoard" in result.err + result.out


def test_when_every_record_is_rejected_the_run_fails(ray_embed, model, tmp_path):
    (tmp_path / "valid").mkdir()
    for number in range(5):
        (tmp_path / "valid" / f"{number}.png").write_bytes(b"text")
    result = ray_embed("run", "--source", "valid", *options(model, "--out", "r"))
    assert result.code == 1
    for token in ("all records", "not an image", "r/rejects"):
        assert token in result.err
    assert "Traceback" not in result.err
    assert rows("r", "rejects")["index"].to_pylist() == list(range(5))
    result = ray_embed("reduce", "r")
    assert result.code == 1


def test_too_many_rejects_stop_the_run_where_asked(ray_embed, sources, model):
    result = ray_embed(
        "extract", "--source", sources / "valid", *options(model, "--out", "r", "--max-rejects", 3)
    )
    assert result.code == 1
    for token in ("--max-rejects", "r/rejects", "ray-embed extract"):
        assert token in result.err


def test_out_that_cannot_be_written_is_bad_input(ray_session, sources, model):
    with pytest.raises(InputError, match="--out /proc/"):
        package.run(
            RunConfig(
                sources={"valid": sources / "valid"},
                model=model,
                out="/proc/no-such-folder/r",
                actors=1,
                cpus_per_actor=1,
            )
        )
