# SPDX-License-Identifier: Apache-2.0
"""Actors that outlive a run: taken over where nothing of the run before can be seen in them."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_embed.config import make_config
from ray_embed.core import user_code
from ray_embed.errors import InputError
from ray_embed.runtime import kept_actors
from ray_embed.runtime.kept_actors import keep_actors, runs_user_code
from ray_embed.runtime.session import open_session


class Actor:
    """As much of an extractor as a session starts."""

    def __init__(self, threads: int, folder: str) -> None:
        os.chdir(folder)
        user_code.add_to_path(folder)

    def call(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


class Other(Actor):
    """Another class of actors."""


def config(**options: Any) -> Any:
    return make_config({"sources": {"a": "x"}, "model": "m.keras", "cpus_per_actor": 1, **options})


def call(function: Any, *arguments: Any, actor: type = Actor, **options: Any) -> Any:
    """Call a function in the actor of a run of its own."""
    with open_session(config(**options), actor) as running:
        return running.call(function, *arguments)()


def import_helper() -> str:
    import helper_of_a_run

    return str(helper_of_a_run.NAME)


def make_helper(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / "helper_of_a_run.py").write_text(f"NAME = {name!r}\n")
    return folder


@pytest.fixture
def kept(ray_session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    with keep_actors():
        yield


def test_next_run_has_the_actor_of_the_one_before(kept: None) -> None:
    assert call(os.getpid) == call(os.getpid)


def test_actors_end_with_their_run_unless_they_are_kept(kept: None, monkeypatch) -> None:
    monkeypatch.setattr(kept_actors._Kept, "is_open", False)
    assert call(os.getpid) != call(os.getpid)


def test_another_folder_is_the_working_folder(kept: None, tmp_path: Path, monkeypatch) -> None:
    first = call(os.getpid)
    (tmp_path / "next").mkdir()
    monkeypatch.chdir(tmp_path / "next")
    assert call(os.getcwd) == str(tmp_path / "next")
    assert call(os.getpid) == first
    assert str(tmp_path) not in call(lambda: sys.path)


def test_actor_that_imported_a_module_of_the_folder_is_not_kept(
    kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_helper(tmp_path / "one", "one"))
    assert call(import_helper) == "one"
    monkeypatch.chdir(make_helper(tmp_path / "two", "two"))
    assert call(import_helper) == "two"


def test_installed_packages_below_the_folder_are_not_of_the_user(
    kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sys.prefix)
    first = call(os.getpid)
    monkeypatch.chdir(tmp_path)
    assert call(os.getpid) == first


def test_actor_of_a_run_with_bad_input_is_kept(kept: None) -> None:
    with pytest.raises(InputError), open_session(config(), Actor) as running:
        first = running.call(os.getpid)()
        raise InputError("bad")
    assert call(os.getpid) == first


@pytest.mark.parametrize(
    "change",
    [{"cpus_per_actor": 2}, {"imports": ("json",)}, {"model": "json:loads"}, {"actor": Other}],
    ids=str,
)
def test_other_runs_have_their_own_actors(kept: None, change: dict[str, Any]) -> None:
    first = call(os.getpid)
    second = call(os.getpid, **change)
    assert second != first
    assert call(os.getpid) not in (first, second)


def test_other_environment_has_its_own_actors(kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = call(os.getpid)
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    assert call(os.getenv, "TF_USE_LEGACY_KERAS") == "1"
    assert call(os.getpid) != first


def test_actor_of_a_run_that_failed_is_ended(kept: None) -> None:
    with pytest.raises(ZeroDivisionError), open_session(config(), Actor) as running:
        first = running.call(os.getpid)()
        raise ZeroDivisionError
    assert call(os.getpid) != first


def test_actor_that_died_is_replaced(kept: None) -> None:
    first = call(os.getpid)
    os.kill(first, 9)
    assert call(os.getpid) != first


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"preprocess": "my_module:scale"}, True),
        ({"model": "my_module:make"}, True),
        ({"model": print}, True),
        ({"imports": ("my_layers",)}, True),
    ],
)
def test_runs_that_need_code_of_the_user(options: dict[str, Any], expected: bool) -> None:
    assert runs_user_code(config(**options)) is expected
