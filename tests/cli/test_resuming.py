# SPDX-License-Identifier: Apache-2.0
"""The last line of a command that ended early names what is kept, and how to resume."""

import os
import time

import pytest

from ray_embed.cli.commands import cli
from ray_embed.cli.resuming import suggest_next_command
from ray_embed.storage import manifest
from ray_embed.storage.filesystem import Folder

RUN = ["run", "--source", "valid", "--model", "m.keras", "--out", "r"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(folder, parts=0):
    manifest.write_run(Folder.open(str(folder)), {}, "0")
    (folder / "features").mkdir(exist_ok=True)
    for number in range(parts):
        (folder / "features" / f"part-{number:08}.parquet").write_bytes(b"")


def suggest(arguments, started=None):
    return suggest_next_command(cli, arguments, time.time() if started is None else started)


def test_finished_shards_are_kept(here):
    begin(here / "r", 1)
    assert suggest(RUN) == f"Finished shards are kept. Resume with: ray-embed {' '.join(RUN)}"
    # The command to resume must not delete them.
    begun = time.time() - 60
    assert suggest([*RUN, "--overwrite"], begun) == suggest(RUN)
    assert suggest(["extract", *RUN[1:]]).endswith(
        "Resume with: ray-embed extract " + " ".join(RUN[1:])
    )


def test_no_shards_are_kept_before_one_is_finished(here):
    assert suggest(RUN) == f"Nothing was written. Run again with: ray-embed {' '.join(RUN)}"
    begin(here / "r")
    assert suggest(RUN) == f"No shard was finished. Run again with: ray-embed {' '.join(RUN)}"


def test_older_run_to_be_overwritten_does_not_count_as_kept(here):
    begin(here / "r", 2)
    hour_ago = time.time() - 3600
    os.utime(here / "r" / "run.json", (hour_ago, hour_ago))
    line = suggest([*RUN, "--overwrite"])
    assert line.startswith("Nothing was written. Run again with: ")
    assert line.endswith("--overwrite")
    (here / "c.yaml").write_text("out: r\noverwrite: true\nmodel: m.keras\n")
    assert suggest(["run", "--config", "c.yaml"]).startswith("Nothing was written.")


def test_run_folder_comes_from_yaml_or_the_model(here):
    begin(here / "other", 1)
    (here / "c.yaml").write_text("out: other\nmodel: m.keras\nsources: {valid: valid}\n")
    assert suggest(["run", "--config", "c.yaml"]).startswith("Finished shards are kept.")
    begin(here / "runs" / "m-w", 1)
    named = [*RUN[:-2], "--weights", "w.weights.h5"]
    assert suggest(named).startswith("Finished shards are kept.")


def test_sweep_keeps_the_shards_of_any_run(here):
    words = ["sweep", "--source", "valid", "--model", "m.keras", "--weights", "e-*.h5"]
    assert suggest(words).startswith("Nothing was written.")
    begin(here / "runs" / "m-sweep" / "e-1")
    assert suggest(words).startswith("No shard was finished.")
    begin(here / "runs" / "m-sweep" / "e-2", 1)
    assert suggest(words) == (
        "Finished shards are kept. Resume with: ray-embed sweep --source valid --model m.keras "
        "--weights 'e-*.h5'"
    )


@pytest.mark.parametrize("command", ["reduce", "status", "evaluate", "plot", "view", "compare"])
def test_command_that_extracts_nothing_has_no_line(command, here):
    begin(here / "r", 1)
    assert suggest([command, "r"]) is None


def test_baseline_of_random_weights_can_be_resumed(here):
    begin(here / "r", 1)
    begin(here / "r" / "random-weights", 1)
    assert suggest(["evaluate", "r"]) is None
    line = "Finished shards are kept. Resume with: ray-embed evaluate r --random-weights"
    assert suggest(["evaluate", "r", "--random-weights"]) == line


@pytest.mark.parametrize("arguments", [[], ["no-command"], ["--version"], ["demo"], ["layers"]])
def test_other_arguments_have_no_line(arguments):
    assert suggest(arguments) is None


def test_failing_storage_has_no_line(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("gone")

    monkeypatch.setattr(Folder, "exists", fail)
    assert suggest(RUN) is None
