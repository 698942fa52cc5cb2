# SPDX-License-Identifier: Apache-2.0
"""Actors that outlive a run: reused where nothing of the run before can be seen in them."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from ray_embed import Session
from ray_embed.config import make_config
from ray_embed.core import user_code
from ray_embed.core.imported_code import ImportedCode
from ray_embed.errors import InputError
from ray_embed.runtime.kept_actors import describe_user_code
from ray_embed.runtime.session import open_session


class Actor:
    """As much of an extractor as a session starts."""

    def __init__(self, threads: int, folder: str) -> None:
        os.chdir(folder)
        user_code.add_to_path(folder)
        self._code = ImportedCode()

    def call(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    def reuse(self, folder: str) -> bool:
        return self._code.prepare_for_run(folder)


class Other(Actor):
    """Another class of actors."""


def config(**options: Any) -> Any:
    return make_config({"sources": {"a": "x"}, "model": "m.keras", "cpus_per_actor": 1, **options})


def call(function: Any, *arguments: Any, actor: type = Actor, **options: Any) -> Any:
    """Call a function in the actor of a run of its own."""
    with open_session([config(**options)], actor) as running:
        return running.call(function, *arguments)()


def import_helper() -> tuple[str, int]:
    import helper_of_a_run

    return str(helper_of_a_run.NAME), os.getpid()


def make_helper(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "helper_of_a_run.py").write_text(f"NAME = {name!r}\n")
    return folder


def wait_for_clock() -> None:
    """Wait until a file that was written is known to be older than what happens next."""
    time.sleep(0.2)


@pytest.fixture
def kept(ray_session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    with Session():
        yield


def test_next_run_has_the_actor_of_the_one_before(kept: None) -> None:
    assert call(os.getpid) == call(os.getpid)


def test_another_folder_is_the_working_folder(kept: None, tmp_path: Path, monkeypatch) -> None:
    first = call(os.getpid)
    (tmp_path / "next").mkdir()
    monkeypatch.chdir(tmp_path / "next")
    assert call(os.getcwd) == str(tmp_path / "next")
    assert call(os.getpid) == first
    assert str(tmp_path) not in call(lambda: sys.path)


def test_actor_that_imported_a_module_of_the_folder_stays_there(
    kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_helper(tmp_path / "one", "one"))
    assert call(import_helper)[0] == "one"
    monkeypatch.chdir(make_helper(tmp_path / "two", "two"))
    assert call(import_helper)[0] == "two"


def test_actor_with_unchanged_modules_is_kept(
    kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_helper(tmp_path / "code", "same"))
    wait_for_clock()
    first = call(import_helper)
    assert call(import_helper) == first
    # The same content, but written later.
    make_helper(tmp_path / "code", "same")
    assert call(import_helper) == first


@pytest.mark.parametrize("is_known", [False, True])
def test_actor_with_a_changed_module_is_not_kept(
    kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    monkeypatch.chdir(make_helper(tmp_path / "code", "old"))
    wait_for_clock()
    assert call(import_helper)[0] == "old"
    if is_known:
        assert call(import_helper)[0] == "old"
    make_helper(tmp_path / "code", "changed")
    assert call(import_helper)[0] == "changed"


def test_installed_packages_below_the_folder_are_not_of_the_user(
    kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sys.prefix)
    first = call(os.getpid)
    monkeypatch.chdir(tmp_path)
    assert call(os.getpid) == first


def test_actor_of_a_run_with_bad_input_is_kept(kept: None) -> None:
    with pytest.raises(InputError), open_session([config()], Actor) as running:
        first = running.call(os.getpid)()
        raise InputError("bad")
    assert call(os.getpid) == first


@pytest.mark.parametrize(
    "change", [{"cpus_per_actor": 2}, {"model": "json:loads"}, {"actor": Other}], ids=str
)
def test_other_runs_have_their_own_actors(kept: None, change: dict[str, Any]) -> None:
    first = call(os.getpid)
    second = call(os.getpid, **change)
    assert second != first
    assert call(os.getpid) not in (first, second)


@pytest.mark.parametrize(
    "code",
    [
        {"imports": ("json",)},
        {"model": "json:loads", "weights": "w.h5"},
        {"preprocess": "json:loads"},
        {"sources": {"a": "json:loads"}},
        {"sources": {"a": np.zeros((1, 8, 8, 3))}},
    ],
    ids=str,
)
def test_actor_with_user_code_is_kept_for_the_same_code(kept: None, code: dict[str, Any]) -> None:
    first = call(os.getpid)
    assert call(os.getpid, **code) == first
    assert call(os.getpid, **code) == first
    assert call(os.getpid) != first


def test_another_number_of_actors_uses_those_that_are_there(kept: None) -> None:
    def list_processes(count: int) -> set[int]:
        with open_session([config(actors=count)], Actor) as running:
            workers = running.pool.fill(None)
            for worker in workers:
                worker.node = "here"
            return set(ray.get([worker.actor.call.remote(os.getpid) for worker in workers]))

    first = list_processes(1)
    second = list_processes(2)
    assert first < second
    assert list_processes(1) < second


def test_other_environment_has_its_own_actors(kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = call(os.getpid)
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    assert call(os.getenv, "TF_USE_LEGACY_KERAS") == "1"
    assert call(os.getpid) != first


def test_newly_installed_packages_need_new_actors(
    kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(packages)
    first = call(os.getpid)
    assert call(os.getpid) == first
    (packages / "other-1.0.dist-info").mkdir()
    assert call(os.getpid) != first


def test_actor_of_a_run_that_failed_is_ended(kept: None) -> None:
    with pytest.raises(ZeroDivisionError), open_session([config()], Actor) as running:
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
        ({}, ()),
        ({"preprocess": "my_module:scale"}, ("preprocess my_module:scale",)),
        ({"model": "my_module:make"}, None),
        ({"model": "my_module:make", "weights": "w.h5"}, ("model my_module:make {}",)),
        ({"model": print}, ()),
        ({"imports": ("my_layers",)}, ("import my_layers",)),
        ({"sources": {"a": range(3)}}, ("source builtins:range",)),
        (
            {"sources": {"a": "my_module:read"}, "source_kwargs": {"a": {"n": 1}}},
            ('source my_module:read {"n": 1}',),
        ),
    ],
)
def test_code_that_actors_execute(options: dict[str, Any], expected: Any) -> None:
    assert describe_user_code([config(**options)]) == expected


def test_code_of_a_sweep_is_that_of_all_its_runs() -> None:
    runs = [config(), config(imports=("b",)), config(imports=("b", "a"))]
    assert describe_user_code(runs) == ("import a", "import b")
    assert describe_user_code([*runs, config(model="my_module:make")]) is None
