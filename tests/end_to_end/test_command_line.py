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
    read_parts,
    save_encoder,
    write_listing,
)

import ray_embed as package

SHARDS = 10
KINDS = ("features", "rejects", "thumbnails", "projector")


def test_package_has_a_type_marker():
    assert (importlib.resources.files("ray_embed") / "py.typed").is_file()
    project = Path(__file__).parents[2] / "pyproject.toml"
    import tomllib

    setuptools = tomllib.loads(project.read_text())["tool"]["setuptools"]
    assert "py.typed" in setuptools["package-data"]["ray_embed"]


# --- a run and its output ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(ray_session, tmp_path_factory):
    """A source of ten records, two of them not images, and its run in this process."""
    root = tmp_path_factory.mktemp("sample")
    source = write_listing(root / "valid", [f"l{number % 3}" for number in range(10)], {1, 5})
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
    """The same run by ``python -m ray_embed`` in its own process, with its own Ray."""
    folder = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        [sys.executable, "-m", "ray_embed", "run", *options(sample, "run")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr, folder=folder)


def test_run_in_its_own_process_writes_the_same_bytes(finished, sample):
    assert finished.code == 0, finished.err
    for kind in KINDS:
        assert contents(finished.folder / "run" / kind) == contents(sample.run / kind), kind


def test_stdout_has_only_the_summary(finished):
    lines = finished.out.splitlines()
    assert len(lines) <= 6
    assert "10 records" in finished.out
    assert "8 embedded" in finished.out
    assert "2 rejected (2 not an image)" in finished.out
    # Ten records are too few to measure a rate.
    assert "img/s" not in finished.out
    assert "run/features" in finished.out
    assert "ray-embed view run" in finished.out


def test_stderr_without_a_terminal_has_plain_lines(finished):
    assert "\r" not in finished.err
    assert "\x1b" not in finished.err
    assert "\r" not in finished.out
    # Messages of TensorFlow and Ray are not for the user.
    for line in finished.err.splitlines():
        assert not re.search(r"WARNING|Traceback|oneDNN|E0000|I0000|W0000|FutureWarning", line)


def test_running_again_changes_nothing(finished, sample, tmp_path, ray_embed):
    run = copy(finished.folder / "run", tmp_path / "run")
    times = {part: part.stat().st_mtime_ns for part in part_files(run)}
    result = ray_embed("run", *options(sample, "run"))
    assert result.code == 0, result.err
    assert "10 records: 8 embedded, 2 rejected" in result.out
    assert {part: part.stat().st_mtime_ns for part in part_files(run)} == times
    for kind in KINDS:
        assert contents(run / kind) == contents(sample.run / kind), kind


def test_options_that_may_change_are_recorded_on_resume(sample, tmp_path, ray_embed):
    run = copy(sample.run, tmp_path / "run")
    before = json.loads((run / "run.json").read_text())
    result = ray_embed("run", *options(sample, "run", **{"projector-limit": 5, "max-rejects": 4}))
    assert result.code == 0, result.err
    assert "a sample of 5 of the 8 points" in result.err
    shown = (run / "projector" / "sample.tsv").read_bytes()
    # Later commands use the same number.
    assert package.reduce(str(run)) == 8
    assert (run / "projector" / "sample.tsv").read_bytes() == shown
    after = json.loads((run / "run.json").read_text())
    assert after["config"] == before["config"] | {"projector_limit": 5, "max_rejects": 4}
    assert after["fingerprint"] == before["fingerprint"]
    assert ray_embed("status", run, "--verify").code == 0


def test_console_script_equals_the_module(sample):
    script = Path(sys.executable).parent / "ray-embed"
    if not script.exists():
        pytest.skip("the package is not installed")
    script_result = subprocess.run([script, "status", sample.run], capture_output=True, text=True)
    module_result = subprocess.run(
        [sys.executable, "-m", "ray_embed", "status", sample.run], capture_output=True, text=True
    )
    assert script_result.returncode == module_result.returncode == 0
    assert script_result.stdout == module_result.stdout
    assert script_result.stderr == module_result.stderr == ""


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
def test_wrong_input_exits_2_with_empty_stdout(tmp_path, ray_embed, arguments):
    result = ray_embed(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


# --- limits --------------------------------------------------------------------------------------


def test_too_many_rejects_stop_the_run_until_more_are_allowed(sample, tmp_path, ray_embed):
    labels = [f"l{number % 3}" for number in range(20)]
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


def test_rejects_of_a_killed_attempt_are_not_counted(sample, tmp_path, ray_embed):
    # A shard with rejects but without features is not done.
    run = copy(sample.run, tmp_path / "r")
    shutil.rmtree(run / "projector")
    part_files(run)[1].unlink()
    report = json.loads(ray_embed("status", run, "--json").out)
    assert report["shards_done"] == 2
    assert report["rows"] == 5
    assert report["rejects"] == 1
    assert package.load(str(run)).rejects == 1
    # The run has two rejects, as many as are allowed.
    result = ray_embed("extract", *options(sample, run), "--max-rejects", 2)
    assert result.code == 0, result.err
    assert "8 embedded, 2 rejected" in result.out
    assert contents(run / "rejects") == contents(sample.run / "rejects")
    assert contents(run / "features") == contents(sample.run / "features")
    assert f"ray-embed reduce {run}" in result.out
    assert not (run / "projector").exists()


# --- stopped and resumed --------------------------------------------------------------------------


def slow_encoder(path):
    """Save an encoder that takes about half a second for each shard."""
    import keras

    keras.utils.set_random_seed(3)
    image = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(256, 3, padding="same", activation="relu")(image)
    x = keras.layers.Conv2D(256, 3, padding="same", activation="relu")(x)
    keras.Model(image, keras.layers.Conv2D(6, 3)(x)).save(path)
    return path


def stopped(folder, command, parts, stop):
    """Start the command in its own session; stop it once it has written `parts` parts."""
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
            assert time.monotonic() < end, "the parts are not written"
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
    left = [process.name() for process in alive if process.is_running()]
    for process_left in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process_left.kill()
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
    """A run stopped by SIGTERM, then by Ctrl-C, then finished, and an undisturbed run."""
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
    match = re.search(r"Resume with: ray-embed (.*)", interrupted.err)
    resumed = subprocess.run(
        [*command[:3], *(shlex.split(match[1]) if match else words)],
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
    """Check that some parts exist, not all, each as an undisturbed run writes it."""
    parts = finished_parts(stop.files)
    assert 1 <= len(parts) < SHARDS
    undisturbed = contents(calm)
    for name, content in stop.files.items():
        if name.split("/")[0] in ("features", "rejects", "thumbnails"):
            assert content == undisturbed[name], name


@pytest.mark.slow
def test_interrupt_exits_130_soon(story):
    assert story.interrupted.code == 130, story.interrupted.err
    assert story.interrupted.seconds < 15


@pytest.mark.slow
def test_interrupt_leaves_stdout_empty(story):
    assert story.interrupted.out == ""


@pytest.mark.slow
def test_interrupt_prints_the_command_to_resume(story):
    assert "Traceback" not in story.interrupted.err
    match = re.search(r"Resume with: ray-embed (.*)", story.interrupted.err)
    assert match
    assert shlex.split(match[1]) == story.words


@pytest.mark.slow
def test_interrupt_keeps_only_whole_parts(story):
    assert_kept_whole(story.interrupted, story.calm)
    before = finished_parts(story.terminated.files)
    assert before.items() <= finished_parts(story.interrupted.files).items()


@pytest.mark.slow
def test_interrupt_leaves_no_process(story):
    assert story.interrupted.children > 2
    assert story.interrupted.left == []


@pytest.mark.slow
def test_termination_keeps_only_whole_parts(story):
    assert story.terminated.code == 130, story.terminated.err
    assert_kept_whole(story.terminated, story.calm)


@pytest.mark.slow
def test_termination_leaves_no_process(story):
    assert story.terminated.children > 2
    assert story.terminated.left == []


@pytest.mark.slow
def test_resumed_run_equals_an_undisturbed_one(story):
    assert story.resumed.returncode == 0, story.resumed.stderr
    assert "40 records: 39 embedded, 1 rejected" in story.resumed.stdout
    for kind in KINDS:
        assert contents(story.run / kind) == contents(story.calm / kind), kind


@pytest.mark.slow
def test_resumed_run_leaves_no_temporary_files(story):
    assert contents(story.run / ".tmp") == {}


@pytest.mark.slow
def test_status_of_an_unfinished_run(story, ray_embed):
    done = len(part_files(story.halfway))
    result = ray_embed("status", story.halfway)
    assert result.code == 0
    assert result.err == ""
    assert f"{done} of {SHARDS}" in result.out
    assert "40 planned" in result.out
    report = json.loads(ray_embed("status", story.halfway, "--json").out)
    assert report["shards_done"] == done
    assert report["shards_planned"] == SHARDS
    assert report["records_planned"] == 40
    assert report["rows"] == read_parts(story.halfway).num_rows
    assert report["projector"] is False
    assert report["fingerprint"] == json.loads((story.calm / "run.json").read_text())["fingerprint"]
    result = ray_embed("status", story.halfway, "--verify")
    assert result.code == 1
    assert f"{SHARDS - done} shards are not done" in result.out


# --- status of a finished run --------------------------------------------------------------------


def test_status_shows_counts_and_rejects(sample, ray_embed):
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
    report = json.loads(result.out)
    assert report["shards_done"] == report["shards_planned"] == 3
    assert report["records_planned"] == 10
    assert report["rows"] == 8
    assert report["rejects"] == 2
    assert report["rejects_by_reason"] == {"not an image": 2}
    assert report["projector"] is True
    assert report["problems"] == []
    assert report["verified"] is True


def test_status_changes_nothing(sample, tmp_path, ray_embed):
    run = copy(sample.run, tmp_path / "r")
    before = contents(run)
    ray_embed("status", run, "--verify")
    assert contents(run) == before


def test_status_is_consistent_while_shards_finish(sample, tmp_path, monkeypatch):
    from ray_embed.runs import status
    from ray_embed.storage import part_files as part_files_module

    run = copy(sample.run, tmp_path / "r")
    # Both rejects belong to shards that finish only after the parts were listed.
    late = [path for number in (0, 1) for path in run.glob(f"[ft]*/part-{number:08d}.parquet")]
    for path in late:
        path.rename(f"{path}-later")
    list_part_numbers = part_files_module.list_part_numbers

    def list_then_finish(*arguments):
        numbers = list(list_part_numbers(*arguments))
        for path in late:
            if path.with_name(f"{path.name}-later").exists():
                path.with_name(f"{path.name}-later").rename(path)
        return iter(numbers)

    monkeypatch.setattr(part_files_module, "list_part_numbers", list_then_finish)
    report = status.read_status(str(run))
    assert (report.shards_done, report.rows, report.rejects) == (1, 2, 0)
    report = status.read_status(str(run))
    assert (report.shards_done, report.rows, report.rejects) == (3, 8, 2)


def verify(ray_embed, run):
    """Verify a damaged run, and return the problems that are reported."""
    result = ray_embed("status", run, "--verify")
    assert result.code == 1
    assert result.err == ""
    assert "problems found" in result.out
    report = json.loads(ray_embed("status", run, "--verify", "--json").out)
    assert report["problems"]
    return "\n".join(report["problems"])


@pytest.mark.parametrize("kind", ["features", "rejects", "thumbnails", "pca"])
@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_verify_finds_a_cut_part(sample, tmp_path, ray_embed, kind, keep):
    run = copy(sample.run, tmp_path / "r")
    part = part_files(run, kind)[0]
    part.write_bytes(part.read_bytes()[:keep])
    assert f"{kind}/{part.name}" in verify(ray_embed, run)
    # Without --verify there is no traceback either.
    assert ray_embed("status", run).code in (0, 1)


@pytest.mark.parametrize("kind", ["features", "rejects", "thumbnails", "pca"])
def test_verify_finds_a_flipped_bit_anywhere(sample, tmp_path, kind):
    from ray_embed.runs.status import read_status

    run = copy(sample.run, tmp_path / "r")
    part = part_files(run, kind)[0]
    content = part.read_bytes()
    writer = content.rindex(b"parquet-cpp-arrow version")
    # The version of the writer says nothing about the data.
    innocent = range(writer + 26, content.index(b"\x19", writer))
    positions = set(range(3, len(content), len(content) // 120 + 1))
    positions |= set(range(len(content) - 9, len(content)))
    for position in sorted(positions - set(innocent)):
        harmed = bytearray(content)
        harmed[position] ^= 1 << position % 8
        part.write_bytes(harmed)
        problems = read_status(str(run), verify=True).problems
        assert problems, position
        assert any(part.name in problem for problem in problems), position
    part.write_bytes(content)
    assert read_status(str(run), verify=True).problems == ()


@pytest.mark.parametrize("kind", ["features", "rejects", "thumbnails"])
@pytest.mark.parametrize("which", [0, -1])
def test_verify_finds_a_deleted_part(sample, tmp_path, ray_embed, kind, which):
    run = copy(sample.run, tmp_path / "r")
    part = part_files(run, kind)[which]
    part.unlink()
    number = int(part.stem.removeprefix("part-"))
    assert re.search(rf"\b(part-0*)?{number}\b", verify(ray_embed, run))


@pytest.mark.parametrize("kind", ["features", "rejects", "thumbnails", "pca"])
def test_verify_finds_swapped_parts(sample, tmp_path, ray_embed, kind):
    run = copy(sample.run, tmp_path / "r")
    first, second = part_files(run, kind)[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    problems = verify(ray_embed, run)
    assert first.name in problems
    assert second.name in problems


def test_verify_finds_a_changed_label(sample, tmp_path, ray_embed):
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


def test_verify_finds_an_extra_part(sample, tmp_path, ray_embed):
    run = copy(sample.run, tmp_path / "r")
    extra = run / "features" / "part-00000003.parquet"
    extra.write_bytes(part_files(run)[0].read_bytes())
    assert extra.name in verify(ray_embed, run)


@pytest.mark.parametrize("what", ["nowhere", "empty", "other"])
def test_status_refuses_other_folders(tmp_path, ray_embed, what):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    result = ray_embed("status", what)
    assert result.code == 2
    assert result.out == ""
    assert what in result.err
    assert "Traceback" not in result.err


def test_status_refuses_a_damaged_run_json(sample, tmp_path, ray_embed):
    run = copy(sample.run, tmp_path / "r")
    (run / "run.json").write_text('{"ray_embed":')
    result = ray_embed("status", run)
    assert result.code == 2
    assert "run.json" in result.err
    assert "Traceback" not in result.err
