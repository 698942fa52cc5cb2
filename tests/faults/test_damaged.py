# SPDX-License-Identifier: Apache-2.0
"""What was changed beneath a run: noticed, named, and mended where it can be."""

import json
import os
import shutil
from types import SimpleNamespace

import keras
import pyarrow.parquet as pq
import pytest
from support.pictures import make_folder
from support.sample_runs import RESULTS, config, contents, copy, read_results, save_encoder

import ray_embed as package
from ray_embed import planning
from ray_embed.errors import DamagedError, InputError
from ray_embed.runs import integrity
from ray_embed.storage import manifest, part_files
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.part_files import part_name

KINDS = (*RESULTS, "plan", "encoder")


@pytest.fixture(scope="module")
def whole(ray_session, tmp_path_factory):
    """A finished run of ten shards of four, with rejects in the shards 1 and 4."""
    root = tmp_path_factory.mktemp("whole")
    source = make_folder(root / "valid", {"a": 18, "b": 22})
    for at in (5, 16):
        (source / "a" / f"{at:04d}.png").write_bytes(b"no picture")
    model = save_encoder(root / "encoder.keras")
    package.run(config({"valid": source}, model, root / "run"))
    return SimpleNamespace(root=root, source=source, model=model, run=root / "run")


@pytest.fixture(scope="module")
def other(whole):
    """A run of the same source by another encoder."""
    model = save_encoder(whole.root / "other.keras", seed=2)
    again(whole, whole.root / "other", model=model)
    return whole.root / "other"


def again(whole, run, **changes):
    given = {"sources": {"valid": whole.source}, "model": whole.model, "out": run} | changes
    return package.run(config(**given))


def files(run):
    return read_results(run, KINDS)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at if at >= 0 else len(content) + at] ^= 0x10
    path.write_bytes(content)


def where_features_are(path):
    values = pq.read_table(path)["feature"].combine_chunks().flatten().to_numpy()
    return path.read_bytes().index(values.tobytes()) + 5


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_damaged_parts_are_named_and_extracted_again(whole, other, tmp_path, capsys):
    run = copy(whole.run, tmp_path / "run")
    name = [run / part_name("features", number) for number in range(10)]
    cut(name[0])
    (run / part_name("rejects", 1)).unlink()
    # In the middle of the features: only the checksum of its page tells.
    flip(name[2], where_features_are(name[2]))
    name[3].unlink()
    cut(run / part_name("rejects", 4))
    shutil.copy(other / part_name("features", 5), name[5])
    shutil.copy(name[7], name[6])
    (run / part_name("thumbnails", 8)).unlink()
    flip(run / part_name("thumbnails", 9), 500)
    # Ten shards were planned.
    for number in (10, 12):
        shutil.copy(name[1], run / part_name("features", number))
    assert files(run) != files(whole.run)
    capsys.readouterr()
    again(whole, run)
    said = capsys.readouterr().err
    for number in (0, 2, 5, 6, 10, 12):
        assert f"{run / part_name('features', number)}: " in said
    for kind, number in (("rejects", 1), ("rejects", 4), ("thumbnails", 8), ("thumbnails", 9)):
        assert f"{run / part_name(kind, number)}: " in said
    assert files(run) == files(whole.run)


@pytest.mark.slow
def test_parts_of_others_are_deleted_or_extracted_again(whole, other, tmp_path, capsys):
    run = copy(whole.run, tmp_path / "run")
    # Ten shards were planned.
    for number in (10, 12):
        shutil.copy(run / part_name("features", 1), run / part_name("features", number))
    shutil.copy(other / part_name("features", 3), run / part_name("features", 3))
    shutil.copy(run / part_name("thumbnails", 7), run / part_name("thumbnails", 6))
    shutil.copy(other / part_name("thumbnails", 8), run / part_name("thumbnails", 8))
    shutil.copy(other / part_name("rejects", 1), run / part_name("rejects", 1))
    capsys.readouterr()
    # Without merging: that is in the test above.
    package.extract(config({"valid": whole.source}, whole.model, run))
    said = capsys.readouterr().err
    for kind, number in (("features", 3), ("features", 10), ("features", 12), ("rejects", 1)):
        assert f"{run / part_name(kind, number)}: " in said
    assert files(run) == files(whole.run)


def test_a_flipped_bit_is_noticed_or_changes_nothing(whole, tmp_path):
    run = copy(whole.run, tmp_path / "run")
    folder = Folder.open(str(run))
    expected = integrity.Expected.from_run(manifest.read_run(folder), planning.load(folder))
    path = run / part_name("features", 4)
    right, table = path.read_bytes(), part_files.read_part(folder, "features", 4)
    noticed = 0
    for at in range(len(right)):
        content = bytearray(right)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        try:
            integrity.check_shard(folder, 4, expected)
        except DamagedError:
            noticed += 1
        else:
            assert part_files.read_part(folder, "features", 4).equals(table)
    assert noticed > len(right) // 2


def test_a_damaged_part_never_reaches_the_projector(whole, tmp_path, ray_embed):
    run = copy(whole.run, tmp_path / "run")
    before = files(run)
    flip(run / part_name("features", 2), where_features_are(run / part_name("features", 2)))
    reduced = ray_embed("reduce", run)
    assert reduced.code == 2
    assert str(run / part_name("features", 2)) in reduced.err
    assert "`ray-embed run` with the same options" in reduced.err
    assert {n: c for n, c in files(run).items() if n.startswith("projector")} == {
        n: c for n, c in before.items() if n.startswith("projector")
    }
    verified = ray_embed("status", run, "--verify")
    assert verified.code == 1
    assert "problems found" in verified.out


@pytest.mark.parametrize("harm", ["deleted", "damaged"])
def test_plan_and_encoder_are_written_again(whole, tmp_path, capsys, harm):
    run = copy(whole.run, tmp_path / "run")
    kept = [
        run / "plan" / "plan.json",
        next((run / "plan" / "00-valid").iterdir()),
        run / "encoder" / "graph.pb",
        run / "encoder" / "encoder.json",
    ]
    for path in kept:
        if harm == "deleted":
            path.unlink()
        else:
            flip(path, path.stat().st_size // 2)
    for number in (0, 9):
        (run / part_name("features", number)).unlink()
    again(whole, run)
    assert files(run) == files(whole.run)


@pytest.mark.slow
def test_an_edited_description_of_the_encoder_is_written_again(whole, tmp_path, ray_embed):
    run = copy(whole.run, tmp_path / "run")
    path = run / "encoder" / "encoder.json"
    before = path.read_bytes()
    kept = json.loads(before)
    kept["output_names"] = [f"{name}x" for name in kept["output_names"]]
    path.write_text(json.dumps(kept))
    (run / part_name("features", 9)).unlink()
    verified = ray_embed("status", run, "--verify")
    assert verified.code == 1
    assert f"{run}/encoder: it is missing or damaged" in verified.out
    again(whole, run)
    assert path.read_bytes() == before
    assert files(run) == files(whole.run)


@pytest.mark.parametrize("change", ["an option", "a fingerprint", "nothing but a digit", "gone"])
def test_an_edited_or_missing_description_is_refused(whole, tmp_path, change):
    run = copy(whole.run, tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    if change == "an option":
        about["config"]["projector_limit"] = 7
    if change == "a fingerprint":
        about["fingerprint"] = "0" * 64
    if change == "nothing but a digit":
        about["identity"]["batch size"] += 1
    (run / "run.json").write_text(json.dumps(about))
    if change == "gone":
        (run / "run.json").unlink()
    before = contents(run)
    with pytest.raises(InputError, match=r"run\.json"):
        again(whole, run)
    assert contents(run) == before


def test_changed_source_is_refused_but_a_moved_one_is_not(whole, tmp_path):
    source, run = tmp_path / "valid", tmp_path / "run"
    shutil.copytree(whole.source, source)
    # One at hand is built here, so that being refused takes no time.
    model = keras.models.load_model(whole.model)

    def called():
        given = config({"valid": source}, whole.model, run)
        return package.run(given.model_copy(update={"model": model}))

    called()
    finished = read_results(run)
    (run / part_name("features", 9)).unlink()
    before = contents(run)
    path, added = source / "a" / "0003.png", source / "a" / "0002a.png"
    content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    for change in ("added", "removed", "other content", "other time"):
        if change == "added":
            shutil.copy(path, added)
        if change == "removed":
            path.unlink()
        if change == "other content":
            path.write_bytes(content + b"x")
        if change == "other time":
            os.utime(path, ns=(0, 1_000_000_000))
        # The first file that differs is named.
        first = added if change == "added" else path
        with pytest.raises(InputError, match=first.relative_to(source).as_posix()):
            called()
        assert contents(run) == before, change
        added.unlink(missing_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=times)
    source = source.rename(tmp_path / "elsewhere")
    # Other times too, as a copy has.
    for path in source.rglob("*.png"):
        os.utime(path, ns=(0, 1_000_000_000))
    called()
    assert read_results(run) == finished


def test_a_pipe_is_no_file(whole, tmp_path):
    source = make_folder(tmp_path / "valid", {"a": 5})
    os.mkfifo(source / "a" / "pipe.png")
    found = again(whole, tmp_path / "run", sources={"valid": source})
    assert (found.rows, found.rejects_by_reason) == (5, {"missing": 1})
