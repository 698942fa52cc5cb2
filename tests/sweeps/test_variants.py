# SPDX-License-Identifier: Apache-2.0
"""The names and options of the runs of a sweep."""

from pathlib import Path

import pytest

from ray_embed import InputError, RunConfig
from ray_embed.sweeps.variants import make_variants
from ray_embed.sweeps.weight_files import find_weights, sort_naturally

CONFIG = RunConfig(sources={"a": "data"}, model="m.keras", pool="gmp")


def name(models=(), weights=(), layers=()):
    return [each.name for each in make_variants(CONFIG, models, weights, layers, "out")]


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        ({"weights": ["c/epoch-1.weights.h5", "c/epoch-2.weights.h5"]}, ["epoch-1", "epoch-2"]),
        ({"weights": ["c/ckpt-1"]}, ["ckpt-1"]),
        ({"weights": ["a/best.h5", "b/best.h5"]}, ["a-best", "b-best"]),
        ({"weights": ["x/1/best.h5", "y/1/best.h5"]}, ["x-1-best", "y-1-best"]),
        ({"weights": ["c/a.h5", "c/a.keras"]}, ["a.h5", "a.keras"]),
        ({"models": ["m/one.keras", "m/two"]}, ["one", "two"]),
        ({"models": ["p.q:small", "p.q:large"]}, ["small", "large"]),
        ({"layers": [["early"], ["early", "block/late"]]}, ["early", "early_block_late"]),
        (
            {"models": ["a.keras", "b.keras"], "weights": ["w.h5"], "layers": [["x"], ["y"]]},
            ["a-x", "a-y", "b-x", "b-y"],
        ),
        ({"weights": ["s3://b/été 1.h5", "s3://b/2.h5"]}, ["_t_1", "2"]),
        ({}, ["run"]),
    ],
)
def test_names_are_what_tells_the_encoders_apart(axes, names):
    assert name(**axes) == names


def test_every_variant_keeps_the_other_options():
    variants = make_variants(CONFIG, [], ["w/1.h5", "w/2.h5"], [["a", "b"]], "s3://bucket/out/?x=y")
    assert [each.config.weights for each in variants] == ["w/1.h5", "w/2.h5"]
    for each in variants:
        assert each.config.layers == ("a", "b")
        assert (each.config.pool, each.config.model) == ("gmp", "m.keras")
    assert variants[0].config.out == "s3://bucket/out/1?x=y"


def test_an_encoder_that_is_given_twice_is_refused():
    with pytest.raises(InputError, match=r"'a\.h5'"):
        name(weights=["a.h5", "a.h5"])


def test_numbers_in_names_are_in_numeric_order():
    names = ["e-10", "e-9", "e-1-b", "e", "e-1"]
    assert sort_naturally(names) == ["e", "e-1", "e-1-b", "e-9", "e-10"]


def write(folder: Path, *names: str) -> None:
    for each in names:
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        (folder / each).write_bytes(b"")


def test_patterns_find_files_folders_and_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "w/e-10.h5", "w/e-9.h5", "w/.e-1.h5", "w/other.txt")
    assert find_weights(["w/e-*.h5"]) == ["w/e-9.h5", "w/e-10.h5"]
    assert find_weights([f"{tmp_path}/w/e-{{9,10}}.h5"]) == [
        f"{tmp_path}/w/e-9.h5",
        f"{tmp_path}/w/e-10.h5",
    ]
    write(
        tmp_path, *(f"c/ckpt-{n}.{end}" for n in (1, 2) for end in ("index", "data-00000-of-00001"))
    )
    write(tmp_path, "c/checkpoint")
    for pattern in ("c/*", "c/ckpt-*", "c/*.index"):
        assert find_weights([pattern]) == ["c/ckpt-1", "c/ckpt-2"]
    write(tmp_path, "runs/e1/ckpt.index", "runs/e2/ckpt.index")
    assert find_weights(["runs/e*"]) == ["runs/e1", "runs/e2"]
    assert find_weights(["random", "w/e-9.h5"]) == ["random", "w/e-9.h5"]


def test_a_folder_of_a_training_gives_the_checkpoints_it_names(tmp_path):
    write(tmp_path, "ckpt-1.index", "ckpt-2.index", "ckpt-10.index")
    state = ['model_checkpoint_path: "ckpt-10"']
    state += [f'all_model_checkpoint_paths: "/elsewhere/ckpt-{number}"' for number in (2, 10, 11)]
    (tmp_path / "checkpoint").write_text("\n".join(state))
    assert find_weights([str(tmp_path)]) == [f"{tmp_path}/ckpt-2", f"{tmp_path}/ckpt-10"]


def test_a_pattern_without_files_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"--weights .*/e-\*\.h5: no file or folder matches"):
        find_weights([f"{tmp_path}/e-*.h5"])
