# SPDX-License-Identifier: Apache-2.0
"""Which modules are sent to a cluster's nodes: those that are needed, and no others."""

import json
import sys
import warnings
from pathlib import Path

import pytest

from ray_embed.config import make_config
from ray_embed.core import user_code, user_modules
from ray_embed.runtime import code_shipping


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def found(folder: Path, *names: str) -> list[str]:
    return [path.as_posix() for path in user_modules.find_files(names, folder)]


def sent(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> dict[str, str]:
    """What would be sent: the text of each file, by its name."""
    monkeypatch.chdir(folder)
    config = make_config({"sources": {"a": "data"}, "model": "m.keras", **options})
    with code_shipping.ship_modules(config, folder) as given:
        modules = given.get("runtime_env", {}).get("py_modules", [])
        return {
            path.relative_to(Path(module).parent).as_posix(): path.read_text()
            for module in modules
            for path in ([Path(module)] if module.endswith(".py") else Path(module).rglob("*"))
            if path.is_file()
        }


def test_imports_are_followed_wherever_they_stand(tmp_path):
    write(
        tmp_path,
        a="import b\nimport json\nimport numpy.linalg\n",
        b="def f():\n    import c as other\nclass D:\n    try:\n        from d import g\n"
        "    except ImportError:\n        pass\n",
        c="import a",
        d="from e import *",
        e="",
        unused="",
    )
    assert found(tmp_path, "a") == ["a.py", "b.py", "c.py", "d.py", "e.py"]
    assert found(tmp_path, "e", "none") == ["e.py"]


def test_packages_come_with_those_around_them_and_relative_imports(tmp_path):
    (tmp_path / "p" / "q").mkdir(parents=True)
    for name in ("p/__init__.py", "p/q/__init__.py", "p/unused.py", "p/r.py", "s.py", "t.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "p" / "__init__.py").write_text("import t")
    (tmp_path / "p" / "q" / "u.py").write_text("from .. import r\nfrom .v import w\n")
    (tmp_path / "p" / "q" / "v.py").write_text("from .....too import far")
    (tmp_path / "s.py").write_text("from p.q import u")
    assert found(tmp_path, "s") == [
        "p/__init__.py", "p/q/__init__.py", "p/q/u.py", "p/q/v.py", "p/r.py", "s.py", "t.py",
    ]  # fmt: skip


def test_folders_without_an_init_file_are_packages_too(tmp_path):
    write(tmp_path, models__encoder="import models.sub.layers", models__sub__layers="")
    # One of the data, named as something that is imported.
    write(tmp_path, a="import data, models.encoder", data__x__unused="")
    assert found(tmp_path, "a") == ["a.py", "models/encoder.py", "models/sub/layers.py"]


def test_what_cannot_be_parsed_is_sent_as_it_is(tmp_path):
    write(tmp_path, a="import b, c, d", b="def (", c="\0", d="x = '\\q'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(tmp_path, "a") == ["a.py", "b.py", "c.py", "d.py"]


@pytest.mark.parametrize("name", ["../outside", "..outside", "", ".", "a/b", "a.", "*", "/x"])
def test_nothing_outside_the_folder_is_taken(tmp_path, name):
    write(tmp_path, outside="", inner__a__b="", x="")
    assert found(tmp_path / "inner", name) == []


def test_nothing_is_run(tmp_path):
    write(tmp_path, a=f"open({str(tmp_path / 'run')!r}, 'w')")
    assert found(tmp_path, "a") == ["a.py"]
    assert not (tmp_path / "run").exists()


def test_our_own_package_is_not_sent_from_the_folder_of_its_sources(tmp_path):
    write(tmp_path, a="import ray_embed.config", ray_embed____init="", ray_embed__config="")
    assert found(tmp_path, "a") == ["a.py"]


def test_every_option_that_names_modules_counts(tmp_path, monkeypatch):
    write(tmp_path, m="'m'", p="'p'", s="'s'", i__j="'j'", unused="")
    (tmp_path / "data.csv").write_text("path,label\n")
    options = {"model": "m:make", "preprocess": "p:f", "imports": "i.j"}
    given = sent(tmp_path, monkeypatch, sources={"a": "s:images", "b": "data.csv"}, **options)
    assert given == {"m.py": "'m'", "p.py": "'p'", "s.py": "'s'", "i/j.py": "'j'"}


def test_without_modules_of_the_folder_nothing_is_sent(tmp_path, monkeypatch):
    write(tmp_path, unused="")
    config = make_config({"sources": {"a": "x.csv"}, "model": "keras.applications:VGG16"})
    with code_shipping.ship_modules(config, tmp_path) as given:
        assert given == {}


@pytest.mark.parametrize(
    ("job", "sends"),
    [
        ({"runtime_env": {"working_dir": "gcs://x.zip"}}, False),
        ({"runtime_env": {"py_modules": ["gcs://x.zip"]}}, False),
        ({"runtime_env": {"env_vars": {"A": "b"}}, "metadata": {}}, True),
        ({"runtime_env": None}, True),
        ({}, True),
    ],
)
def test_a_job_with_code_of_its_own_sends_none(tmp_path, monkeypatch, job, sends):
    write(tmp_path, m="")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert bool(sent(tmp_path, monkeypatch, model="m:make")) is sends


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda here: None, True),
        (lambda here: (here / "unused.py").write_text("another"), True),
        (lambda here: (here / "b.py").write_text("another"), False),
        (lambda here: (here / "b.py").unlink(), False),
        (lambda here: (here / "b.py").write_text("import c"), False),
    ],
)
def test_the_folder_comes_first_only_where_it_has_what_was_sent(
    tmp_path, monkeypatch, change, first
):
    write(tmp_path, a="import b", b="", c="", unused="")
    monkeypatch.chdir(tmp_path)
    config = make_config({"sources": {"a": "x.csv"}, "model": "a:make"})
    with code_shipping.ship_modules(config, tmp_path) as given:
        ((name, value),) = given["runtime_env"]["env_vars"].items()
    # From here on as on a node, where Ray has put the driver's folder before what was sent.
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "sent", *sys.path])
    change(tmp_path)
    user_code.add_to_path(str(tmp_path))
    assert (sys.path.index(str(tmp_path)) < sys.path.index("sent")) is first
    assert sys.path.count(str(tmp_path)) == 1
