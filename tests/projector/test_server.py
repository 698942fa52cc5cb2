# SPDX-License-Identifier: Apache-2.0
"""Which runs `ray-embed view` shows, and how it names them."""

import os
from pathlib import Path

import pytest

from ray_embed.errors import InputError
from ray_embed.projector.server import make_unique_names, open_log_folder
from ray_embed.storage.filesystem import Folder
from ray_embed.storage.manifest import write_run


def make_run(path: Path, *, reduced: bool = True) -> Path:
    """Write as much of a run folder as it takes to know it as one."""
    write_run(Folder.open(str(path)), {"fingerprint": "f"}, "0")
    if reduced:
        (path / "projector").mkdir()
        (path / "projector" / "projector_config.pbtxt").write_text(str(path))
    return path


def shown(*given: Path | str) -> tuple[dict[str, str], list[str]]:
    """Return the source of the configuration of each name, and the printed lines."""
    said: list[str] = []
    with open_log_folder([str(one) for one in given], said.append) as folder:
        configs = [
            Path(above, name)
            for above, _, names in os.walk(folder, followlinks=True)
            for name in names
        ]
        return {str(c.parent.relative_to(folder)): c.read_text() for c in configs}, said


def test_a_run_is_shown_from_its_own_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run7")
    with open_log_folder([str(run)], print) as folder:
        assert folder == run / "projector"


def test_a_folder_shows_its_runs_by_their_names(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs" / name) for name in ("run7", "run8", "training/epoch-1")]
    (tmp_path / "runs" / "data" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "notes.txt").write_text("")
    make_run(tmp_path / "runs" / "too" / "far" / "below")
    found, said = shown(tmp_path / "runs")
    assert found == {run.name: str(run) for run in runs}
    assert said == []


def test_one_run_below_a_folder_has_a_name_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "run7")
    assert shown(tmp_path / "runs")[0] == {"run7": str(run)}


def test_several_runs_and_folders_at_once(tmp_path: Path) -> None:
    one, two, three = (make_run(tmp_path / name) for name in ("run7", "old/run3", "old/run4"))
    # The same run twice is one.
    found, _ = shown(one, tmp_path / "old", three, f"{tmp_path}/old/../run7/")
    assert found == {"run7": str(one), "run3": str(two), "run4": str(three)}


def test_runs_of_the_same_name_are_told_apart_by_the_folders_above(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a/run7", "b/run7", "b/run8")]
    assert shown(*runs)[0] == {
        f"{run.parent.name}/{run.name}": str(run) for run in (runs[0], runs[1], runs[2])
    }


def test_names() -> None:
    # No name may lie in another one: the link of that one is the user's own folder.
    assert make_unique_names(["/run7", "/run7/run7"]) == ["1-run7", "2-run7"]
    assert make_unique_names(["/x/lr=0.1&b#2", "/x/50%"]) == ["lr=0.1_b_2", "50_"]


def test_runs_that_were_not_reduced_are_named_and_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "run7")
    waiting = make_run(tmp_path / "runs" / "run8", reduced=False)
    found, said = shown(tmp_path / "runs")
    assert found == {"run7": str(run)}
    assert len(said) == 1
    assert f"ray-embed reduce {waiting}" in said[0]


def test_nothing_to_view(tmp_path: Path) -> None:
    waiting = make_run(tmp_path / "runs" / "run8", reduced=False)
    with pytest.raises(InputError, match=f"ray-embed reduce {waiting}"):
        shown(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=f"{nothing}: not a run folder, and it holds none"):
            shown(nothing)


def test_a_run_json_of_another_program_is_no_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run7")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{}")
    assert shown(tmp_path)[0] == {"run7": str(run)}


def test_links_are_gone_afterwards_and_runs_are_not(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("run7", "run8")]
    with open_log_folder([str(tmp_path)], print) as folder:
        assert all(link.is_symlink() for link in folder.iterdir())
    assert not folder.exists()
    assert all((run / "projector" / "projector_config.pbtxt").exists() for run in runs)
