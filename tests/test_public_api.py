# SPDX-License-Identifier: Apache-2.0
"""The names that users import: exactly these, all documented, and quick to import."""

import importlib
import subprocess
import sys

import pytest

import ray_embed

PUBLIC = [
    "Comparison",
    "InputError",
    "RayEmbedError",
    "Run",
    "RunConfig",
    "RunError",
    "Session",
    "__version__",
    "compare",
    "extract",
    "load",
    "reduce",
    "run",
    "sweep",
]
RUN_MEMBERS = [
    *("features_path", "projector_path", "rows", "rejects"),
    *("to_numpy", "to_table", "to_pandas", "to_tf", "to_ray", "evaluate"),
]


def test_public_names_are_exactly_these():
    assert sorted(ray_embed.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_can_be_imported_and_has_a_docstring(name):
    value = getattr(importlib.import_module("ray_embed"), name)
    if name == "__version__":
        assert isinstance(value, str)
    else:
        assert value.__name__ == name
        assert value.__doc__
        assert value.__doc__.strip()


@pytest.mark.parametrize("name", RUN_MEMBERS)
def test_run_has_the_members_of_the_contract_documented(name):
    assert getattr(ray_embed.Run, name).__doc__


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="nothing"):
        ray_embed.nothing  # noqa: B018


def test_star_import_gives_the_public_names():
    names: dict[str, object] = {}
    exec("from ray_embed import *", names)
    assert set(PUBLIC) <= names.keys()


def test_import_and_load_need_neither_tensorflow_nor_ray():
    code = (
        "import sys, ray_embed\n"
        "ray_embed.load, ray_embed.Run, ray_embed.RunConfig\n"
        "print(sorted({'tensorflow', 'keras', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
