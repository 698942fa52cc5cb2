# SPDX-License-Identifier: Apache-2.0
"""How the commands behave: exit codes, stdout and stderr, stopping and resuming, `status`."""

import contextlib
import importlib.resources
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow.parquet as pq
import pytest
from support.pictures import make_folder
from support.sample_runs import (
    config,
    contents,
    copy,
    part_files,
    save_encoder,
    table_of,
    write_listing,
)

import ray_embed as package

SHARDS = 10
KINDS = ("features", "rejects", "thumbnails", "projector")


def test_types_are_shipped():
    assert (importlib.resources.files("ray_embed") / "py.typed").is_file()
    project = Path(__file__).parents[2] / "pyproject.toml"
    import tomllib

    setuptools = tomllib.loads(project.read_text())["tool"]["setuptools"]
    assert "py.typed" in setuptools["package-data"]["ray_embed"]


# --- a run, as others see it ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(ray_session, tmp_path_factory):
    """A source of ten records, two of them no pictures, and its run, made in this process."""
    root = tmp_path_factory.mktemp("sample")
    source = write_listing(root / "valid", [f"l{at % 3}" for at in range(10)], {1, 5})
    model = save_encoder(root / "encoder.keras")
    package.run(config({"valid": source}, model, root / "run"))
    return SimpleNamespace(source=source, model=model, run=root / "run", root=root)


def options(sample, out, **more):
    usual = {
        "source": f"valid={sample.source}",
        "model": sample.model,
        "out": out,
        "engine": "tensorflow",
        "actors": 1,
        "cpus-per-actor": 1,
        "batch-size": 4,
        "shard-size": 4,
    }
    return [
        str(word)
        for name, value in (usual | more).items()
        if value is not None
        for word in (f"--{name}", value)
    ]


@pytest.fixture(scope="module")
def finished(sample, tmp_path_factory):
    """The same run by ``python -m ray_embed`` as a process of its own, with a Ray of its own."""
    folder = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        [sys.executable, "-m", "ray_embed", "run", *options(sample, "run")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr, folder=folder)


def test_run_as_a_process_of_its_own(finished, sample):
    assert finished.code == 0, finished.err
    for kind in KINDS:
        assert contents(finished.folder / "run" / kind) == contents(sample.run / kind), kind


def test_summary_is_all_of_stdout(finished):
    lines = finished.out.splitlines()
    assert len(lines) <= 6
    assert "10 records" in finished.out
    assert "8 embedded" in finished.out
    assert "2 rejected (2 not an image)" in finished.out
    # Ten records are too few to tell a speed by.
    assert "img/s" not in finished.out
    assert "run/features" in finished.out
    assert "ray-embed view run" in finished.out


def test_stderr_that_is_no_terminal_gets_plain_lines(finished):
    assert "\r" not in finished.err
    assert "\x1b" not in finished.err
    assert "\r" not in finished.out
    # Neither TensorFlow's nor Ray's own messages: what is said is for the user.
    for line in finished.err.splitlines():
        assert not re.search(r"WARNING|Traceback|oneDNN|E0000|I0000|W0000|FutureWarning", line)


def test_running_again_does_nothing_and_says_the_same(finished, sample, tmp_path, ray_embed):
    run = copy(finished.folder / "run", tmp_path / "run")
    times = {part: part.stat().st_mtime_ns for part in part_files(run)}
    result = ray_embed("run", *options(sample, "run"))
    assert result.code == 0, result.err
    assert "10 records: 8 embedded, 2 rejected" in result.out
    assert {part: part.stat().st_mtime_ns for part in part_files(run)} == times
    for kind in KINDS:
        assert contents(run / kind) == contents(sample.run / kind), kind


def test_the_points_shown_may_be_asked_otherwise_when_going_on(sample, tmp_path, ray_embed):
    run = copy(sample.run, tmp_path / "run")
    before = json.loads((run / "run.json").read_text())
    result = ray_embed("run", *options(sample, "run", **{"projector-limit": 5}))
    assert result.code == 0, result.err
    assert "a sample of 5 of the 8 points" in result.err
    shown = (run / "projector" / "sample.tsv").read_bytes()
    # Whoever merges it again, or draws it, goes by the same number.
    assert package.reduce(str(run)) == 8
    assert (run / "projector" / "sample.tsv").read_bytes() == shown
    after = json.loads((run / "run.json").read_text())
    assert after["config"] == before["config"] | {"projector_limit": 5}
    assert after["fingerprint"] == before["fingerprint"]
    assert ray_embed("status", run, "--verify").code == 0


def test_console_script_is_the_module(sample):
    script = Path(sys.executable).parent / "ray-embed"
    if not script.exists():
        pytest.skip("the package is not installed")
    one = subprocess.run([script, "status", sample.run], capture_output=True, text=True)
    two = subprocess.run(
        [sys.executable, "-m", "ray_embed", "status", sample.run], capture_output=True, text=True
    )
    assert one.returncode == two.returncode == 0
    assert one.stdout == two.stdout
    assert one.stderr == two.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--no-such-option"],
        ["run", "--model", "m.keras"],
        ["run", "--source", "nowhere", "--model", "m.keras"],
        ["run", "--source", "a", "--model", "m.keras", "--batch-size", "none"],
        ["run", "--source", "a", "--model", "m.keras", "--batch-size", "0"],
        ["run", "--source", "a", "--model", "m.keras", "--max-rejects", "-1"],
        ["no-such-command"],
        ["reduce"],
        ["status", "nowhere"],
        ["view", "nowhere"],
    ],
)
def test_bad_input_is_exit_2_with_nothing_on_stdout(tmp_path, ray_embed, arguments):
    result = ray_embed(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


# --- limits --------------------------------------------------------------------------------------


def test_too_many_rejects_stop_the_run_and_more_may_be_allowed(sample, tmp_path, ray_embed):
    labels = [f"l{at % 3}" for at in range(20)]
    source = write_listing(tmp_path / "valid", labels, {5, 6, 9, 10, 17})
    given = options(sample, "r", source=f"valid={source}")
    result = ray_embed("run", *given, "--max-rejects", 3)
    assert result.code == 1
    assert result.out == ""
    assert "--max-rejects 3" in result.err
    assert "Traceback" not in result.err
    assert "Finished shards are kept. Resume with: ray-embed run" in result.err
    kept = {part: part.read_bytes() for part in part_files(tmp_path / "r")}
    assert kept
    assert not (tmp_path / "r" / "projector").exists()
    result = ray_embed("run", *given, "--max-rejects", 5)
    assert result.code == 0, result.err
    assert "15 embedded, 5 rejected" in result.out
    for part, content in kept.items():
        assert part.read_bytes() == content


def test_rejects_that_a_killed_try_left_are_not_counted(sample, tmp_path, ray_embed):
    # Its rejects were there, its features were not: the shard is not done.
    run = copy(sample.run, tmp_path / "r")
    shutil.rmtree(run / "projector")
    part_files(run)[1].unlink()
    found = json.loads(ray_embed("status", run, "--json").out)
    assert found["shards_done"] == 2
    assert found["rows"] == 5
    assert found["rejects"] == 1
    assert package.load(str(run)).rejects == 1
    # There are two rejects in all, which is allowed.
    result = ray_embed("extract", *options(sample, run), "--max-rejects", 2)
    assert result.code == 0, result.err
    assert "8 embedded, 2 rejected" in result.out
    assert contents(run / "rejects") == contents(sample.run / "rejects")
    assert contents(run / "features") == contents(sample.run / "features")
    assert f"ray-embed reduce {run}" in result.out
    assert not (run / "projector").exists()


# --- stopped and gone on with --------------------------------------------------------------------


def slow_encoder(path):
    """Save an encoder that takes about half a second a shard."""
    import keras

    keras.utils.set_random_seed(3)
    image = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(256, 3, padding="same", activation="relu")(image)
    x = keras.layers.Conv2D(256, 3, padding="same", activation="relu")(x)
    keras.Model(image, keras.layers.Conv2D(6, 3)(x)).save(path)
    return path


def stopped(folder, command, parts, stop):
    """Start the command in a session of its own; stop it once there are so many parts."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    everyone = []
    try:
        end = time.monotonic() + 150
        while len(part_files(folder / "run")) < parts and process.poll() is None:
            assert time.monotonic() < end, "it does not get there"
            time.sleep(0.05)
        if process.poll() is None:
            everyone = psutil.Process(process.pid).children(recursive=True)
            stop(process.pid)
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
        seconds = time.monotonic() - began
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(everyone, 15)
    left = [one.name() for one in alive if one.is_running()]
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    return SimpleNamespace(
        code=process.returncode,
        out=out,
        err=err,
        seconds=seconds,
        children=len(everyone),
        left=left,
        files=contents(folder / "run"),
    )


@pytest.fixture(scope="module")
def story(ray_session, tmp_path_factory):
    """A run that was stopped by SIGTERM, then by Ctrl-C, then finished; and an undisturbed one."""
    root = tmp_path_factory.mktemp("story")
    model = slow_encoder(root / "encoder.keras")
    source = make_folder(root / "valid", {"a": 18, "b": 22})
    (source / "a" / "0013.png").write_bytes(b"no picture")
    package.run(config({"valid": source}, model, root / "calm" / "run"))
    folder = root / "stormy"
    folder.mkdir()
    sample = SimpleNamespace(source=source, model=model)
    words = ["run", *options(sample, "run")]
    command = [sys.executable, "-m", "ray_embed", *words]
    terminated = stopped(folder, command, 1, lambda pid: os.kill(pid, signal.SIGTERM))
    interrupted = stopped(
        folder,
        command,
        len(part_files(folder / "run")) + 2,
        lambda pid: os.killpg(pid, signal.SIGINT),
    )
    halfway = copy(folder / "run", root / "halfway")
    said = re.search(r"Resume with: ray-embed (.*)", interrupted.err)
    resumed = subprocess.run(
        [*command[:3], *(shlex.split(said[1]) if said else words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return SimpleNamespace(
        calm=root / "calm" / "run",
        run=folder / "run",
        terminated=terminated,
        interrupted=interrupted,
        halfway=halfway,
        resumed=resumed,
        words=words,
    )


def finished_parts(files):
    return {name: content for name, content in files.items() if name.startswith("features/")}


def assert_kept_whole(stop, calm):
    """Check that some parts are there, not all, and each as an undisturbed run writes it."""
    parts = finished_parts(stop.files)
    assert 1 <= len(parts) < SHARDS
    undisturbed = contents(calm)
    for name, content in stop.files.items():
        if name.split("/")[0] in ("features", "rejects", "thumbnails"):
            assert content == undisturbed[name], name


@pytest.mark.slow
def test_interrupt_is_exit_130_and_soon(story):
    assert story.interrupted.code == 130, story.interrupted.err
    assert story.interrupted.seconds < 15


@pytest.mark.slow
def test_interrupt_has_no_result_on_stdout(story):
    assert story.interrupted.out == ""


@pytest.mark.slow
def test_interrupt_says_the_command_to_go_on(story):
    assert "Traceback" not in story.interrupted.err
    said = re.search(r"Resume with: ray-embed (.*)", story.interrupted.err)
    assert said
    assert shlex.split(said[1]) == story.words


@pytest.mark.slow
def test_interrupt_keeps_every_finished_part_and_none_half(story):
    assert_kept_whole(story.interrupted, story.calm)
    before = finished_parts(story.terminated.files)
    assert before.items() <= finished_parts(story.interrupted.files).items()


@pytest.mark.slow
def test_interrupt_leaves_no_process(story):
    assert story.interrupted.children > 2
    assert story.interrupted.left == []


@pytest.mark.slow
def test_termination_keeps_every_finished_part_and_none_half(story):
    assert story.terminated.code == 130, story.terminated.err
    assert_kept_whole(story.terminated, story.calm)


@pytest.mark.slow
def test_termination_leaves_no_process(story):
    assert story.terminated.children > 2
    assert story.terminated.left == []


@pytest.mark.slow
def test_same_command_finishes_it_as_if_it_had_not_been_stopped(story):
    assert story.resumed.returncode == 0, story.resumed.stderr
    assert "40 records: 39 embedded, 1 rejected" in story.resumed.stdout
    for kind in KINDS:
        assert contents(story.run / kind) == contents(story.calm / kind), kind


@pytest.mark.slow
def test_nothing_temporary_is_left_after_going_on(story):
    assert contents(story.run / ".tmp") == {}


@pytest.mark.slow
def test_status_of_an_unfinished_run(story, ray_embed):
    done = len(part_files(story.halfway))
    result = ray_embed("status", story.halfway)
    assert result.code == 0
    assert result.err == ""
    assert f"{done} of {SHARDS}" in result.out
    assert "40 planned" in result.out
    found = json.loads(ray_embed("status", story.halfway, "--json").out)
    assert found["shards_done"] == done
    assert found["shards_planned"] == SHARDS
    assert found["records_planned"] == 40
    assert found["rows"] == table_of(story.halfway).num_rows
    assert found["projector"] is False
    assert found["fingerprint"] == json.loads((story.calm / "run.json").read_text())["fingerprint"]
    result = ray_embed("status", story.halfway, "--verify")
    assert result.code == 1
    assert f"{SHARDS - done} shards are not done" in result.out


# --- status of a finished run --------------------------------------------------------------------


def test_status_says_what_is_there(sample, ray_embed):
    result = ray_embed("status", sample.run)
    assert result.code == 0
    assert result.err == ""
    for text in ("3 of 3", "10 planned", "8 embedded", "2 rejected", "2 not an image"):
        assert text in result.out
    assert json.loads((sample.run / "run.json").read_text())["fingerprint"] in result.out


def test_status_as_json(sample, ray_embed):
    result = ray_embed("status", sample.run, "--verify", "--json")
    assert result.code == 0
    assert result.err == ""
    found = json.loads(result.out)
    assert found["shards_done"] == found["shards_planned"] == 3
    assert found["records_planned"] == 10
    assert found["rows"] == 8
    assert found["rejects"] == 2
    assert found["rejects_by_reason"] == {"not an image": 2}
    assert found["projector"] is True
    assert found["problems"] == []
    assert found["verified"] is True


def test_status_changes_nothing(sample, tmp_path, ray_embed):
    run = copy(sample.run, tmp_path / "r")
    before = contents(run)
    ray_embed("status", run, "--verify")
    assert contents(run) == before


def test_status_counts_of_one_moment_when_a_shard_gets_done_meanwhile(
    sample, tmp_path, monkeypatch
):
    from ray_embed.runs import status
    from ray_embed.storage import part_files as part_files_module

    run = copy(sample.run, tmp_path / "r")
    # Both rejects are of shards that are done only once the parts have been listed.
    late = [path for number in (0, 1) for path in run.glob(f"[ft]*/part-{number:08d}.parquet")]
    for path in late:
        path.rename(f"{path}-later")
    listed = part_files_module.part_numbers

    def listed_before(*given):
        numbers = list(listed(*given))
        for path in late:
            if path.with_name(f"{path.name}-later").exists():
                path.with_name(f"{path.name}-later").rename(path)
        return iter(numbers)

    monkeypatch.setattr(part_files_module, "part_numbers", listed_before)
    found = status.status(str(run))
    assert (found.shards_done, found.rows, found.rejects) == (1, 2, 0)
    found = status.status(str(run))
    assert (found.shards_done, found.rows, found.rejects) == (3, 8, 2)


def verify(ray_embed, run):
    """Look at a run that is not sound; gives what is said of it."""
    result = ray_embed("status", run, "--verify")
    assert result.code == 1
    assert result.err == ""
    assert "NOT sound" in result.out
    found = json.loads(ray_embed("status", run, "--verify", "--json").out)
    assert found["problems"]
    return "\n".join(found["problems"])


@pytest.mark.parametrize("kind", ["features", "rejects", "thumbnails", "pca"])
@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_verify_finds_a_cut_part(sample, tmp_path, ray_embed, kind, keep):
    run = copy(sample.run, tmp_path / "r")
    part = part_files(run, kind)[0]
    part.write_bytes(part.read_bytes()[:keep])
    assert f"{kind}/{part.name}" in verify(ray_embed, run)
    # Without looking closely it is no traceback either.
    assert ray_embed("status", run).code in (0, 1)


@pytest.mark.parametrize("kind", ["features", "rejects", "thumbnails", "pca"])
def test_verify_finds_a_flipped_bit_wherever_it_is(sample, tmp_path, kind):
    from ray_embed.runs.status import status

    run = copy(sample.run, tmp_path / "r")
    part = part_files(run, kind)[0]
    content = part.read_bytes()
    writer = content.rindex(b"parquet-cpp-arrow version")
    # The version of what wrote it says nothing about the data.
    innocent = range(writer + 26, content.index(b"\x19", writer))
    positions = set(range(3, len(content), len(content) // 120 + 1))
    positions |= set(range(len(content) - 9, len(content)))
    for at in sorted(positions - set(innocent)):
        harmed = bytearray(content)
        harmed[at] ^= 1 << at % 8
        part.write_bytes(harmed)
        problems = status(str(run), verify=True).problems
        assert problems, at
        assert any(part.name in problem for problem in problems), at
    part.write_bytes(content)
    assert status(str(run), verify=True).problems == ()


@pytest.mark.parametrize("kind", ["features", "rejects", "thumbnails"])
@pytest.mark.parametrize("which", [0, -1])
def test_verify_finds_a_deleted_part(sample, tmp_path, ray_embed, kind, which):
    run = copy(sample.run, tmp_path / "r")
    part = part_files(run, kind)[which]
    part.unlink()
    number = int(part.stem.removeprefix("part-"))
    assert re.search(rf"\b(part-0*)?{number}\b", verify(ray_embed, run))


@pytest.mark.parametrize("kind", ["features", "rejects", "thumbnails", "pca"])
def test_verify_finds_parts_that_changed_places(sample, tmp_path, ray_embed, kind):
    run = copy(sample.run, tmp_path / "r")
    one, two = part_files(run, kind)[:2]
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    problems = verify(ray_embed, run)
    assert one.name in problems
    assert two.name in problems


def test_verify_finds_a_label_that_is_not_the_planned_one(sample, tmp_path, ray_embed):
    run = copy(sample.run, tmp_path / "r")
    part = part_files(run)[2]
    table = pq.read_table(part)
    labels = table["label"].to_pylist()
    assert labels[0] != labels[1]
    turned = table.set_column(
        table.column_names.index("label"), table.schema.field("label"), [labels[::-1]]
    )
    pq.write_table(turned, part)
    assert part.name in verify(ray_embed, run)


def test_verify_finds_a_part_too_many(sample, tmp_path, ray_embed):
    run = copy(sample.run, tmp_path / "r")
    extra = run / "features" / "part-00000003.parquet"
    extra.write_bytes(part_files(run)[0].read_bytes())
    assert extra.name in verify(ray_embed, run)


@pytest.mark.parametrize("what", ["nowhere", "empty", "other"])
def test_status_of_what_is_no_run(tmp_path, ray_embed, what):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    result = ray_embed("status", what)
    assert result.code == 2
    assert result.out == ""
    assert what in result.err
    assert "Traceback" not in result.err


def test_status_of_a_damaged_description(sample, tmp_path, ray_embed):
    run = copy(sample.run, tmp_path / "r")
    (run / "run.json").write_text('{"ray_embed":')
    result = ray_embed("status", run)
    assert result.code == 2
    assert "run.json" in result.err
    assert "Traceback" not in result.err
