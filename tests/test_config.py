# SPDX-License-Identifier: Apache-2.0
"""RunConfig from the command line, YAML and Python, and the errors of wrong input."""

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.command import Command, Result
from support.pictures import make_folder

from ray_embed import RunConfig
from ray_embed.cli.commands import main
from ray_embed.config import load_yaml, make_config
from ray_embed.errors import InputError


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Call `ray-embed run` with wrong input: exit 2, no traceback, nothing written."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any) -> Result:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["ray-embed", "run", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        assert exited.value.code == 2, captured.err
        assert "Traceback" not in captured.err
        assert captured.out == ""
        assert sorted(tmp_path.rglob("*")) == before
        return Result(2, captured.out, captured.err)

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "valid", {"a": 1})


# Sources and their splits


def test_split_name_is_what_precedes_the_first_equals_sign():
    config = make_config({"sources": ["valid=a/b", "te-st_2=x=y.csv"], "model": "m.keras"})
    assert config.sources == {"valid": "a/b", "te-st_2": "x=y.csv"}
    assert list(config.sources) == ["valid", "te-st_2"]


def test_split_without_a_name_gets_the_base_name():
    config = make_config({"sources": ["data/valid/", "my_data:make"], "model": "m.keras"})
    assert config.sources == {"valid": "data/valid/", "make": "my_data:make"}


def test_split_without_a_name_loses_the_ending_of_a_file_only(tmp_path):
    (tmp_path / "tree.old").mkdir()
    named = {
        "list.csv": "list",
        "data/images.parquet": "images",
        "s3://bucket/all/data.h5": "data",
        "data/valid.v2": "valid_v2",
        str(tmp_path / "tree.old"): "tree_old",
    }
    config = make_config({"sources": list(named), "model": "m.keras"})
    assert {source: split for split, source in config.sources.items()} == named


def test_path_with_an_equals_sign_has_no_split_name():
    config = make_config({"sources": ["some/dir=1/pictures"], "model": "m.keras"})
    assert config.sources == {"pictures": "some/dir=1/pictures"}


def test_default_split_name_has_only_allowed_characters():
    config = make_config({"sources": ["data/my pictures.v1", "list.csv"], "model": "m.keras"})
    for split in config.sources:
        assert split
        assert set(split) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")


def test_splits_keep_their_order():
    config = make_config({"sources": ["z=1", "a=2", "m=3"], "model": "m.keras"})
    assert list(config.sources) == ["z", "a", "m"]


@pytest.mark.parametrize(
    "given", [["valid=a", "valid=b"], ["a/valid", "b/valid"], ["valid=a", "b/valid"]]
)
def test_same_split_twice_is_refused(refused, given):
    options = [argument for source in given for argument in ("--source", source)]
    result = refused(*options, "--model", "m.keras")
    assert "valid" in result.err
    assert "duplicate" in result.err
    assert "--source" in result.err


def test_python_takes_sources_as_a_dict_by_split():
    data = [("image", 1)]
    config = RunConfig(sources={"valid": data, "test": Path("folder")}, model=len)
    assert config.sources == {"valid": data, "test": "folder"}
    assert config.sources["valid"] is data


def test_split_name_with_other_characters_is_refused():
    with pytest.raises(InputError, match="va/lid"):
        make_config({"sources": {"va/lid": "x"}, "model": "m.keras"})


# Required and wrong options


def test_sources_and_model_are_needed(refused):
    assert "--source" in refused("--model", "m.keras").err
    assert "--model" in refused("--source", "valid").err


@pytest.mark.parametrize("name", ["source-kwargs", "model-kwargs"])
@pytest.mark.parametrize(
    ("text", "where"),
    [('{"valid": {"n": 1,}}', "column"), ("not json", "column"), ('{"a":\n 1\n "b"}', "line 3")],
)
def test_error_of_malformed_json_names_the_position(refused, folder, name, text, where):
    result = refused("--source", folder, "--model", "m.keras", f"--{name}", text)
    assert f"--{name}" in result.err
    assert where in result.err


@pytest.mark.parametrize("text", ["[1]", "3", '"text"', "null"])
def test_json_other_than_an_object_is_refused(refused, folder, text):
    result = refused("--source", folder, "--model", "m.keras", "--model-kwargs", text)
    assert "--model-kwargs" in result.err
    assert "object" in result.err


def test_source_kwargs_of_an_unknown_split_are_refused(refused, folder):
    result = refused(
        "--source", folder, "--model", "m.keras", "--source-kwargs", '{"test": {"n": 1}}'
    )
    assert "'test'" in result.err
    assert "valid" in result.err


def test_source_kwargs_of_a_folder_are_refused(refused, folder):
    result = refused(
        "--source", folder, "--model", "m.keras", "--source-kwargs", '{"valid": {"n": 1}}'
    )
    assert "valid" in result.err
    assert "--source-kwargs" in result.err


def test_source_kwargs_of_a_split_must_be_an_object(refused, folder):
    result = refused("--source", folder, "--model", "m.keras", "--source-kwargs", '{"valid": 3}')
    assert "valid" in result.err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch-size", "0"),
        ("batch-size", "-3"),
        ("batch-size", "many"),
        ("shard-size", "0"),
        ("limit", "0"),
        ("actors", "0"),
        ("cpus-per-actor", "0"),
        ("gpus-per-actor", "-1"),
        ("max-attempts", "0"),
        ("max-rejects", "-1"),
        ("max-pixels", "0"),
        ("shard-timeout", "0"),
        ("projector-limit", "0"),
        ("image-size", "0,16"),
        ("image-size", "16,16,3"),
        ("image-size", "wide"),
        ("pool", "mean"),
        ("scale", "percent"),
        ("engine", "jax"),
        ("precision", "float16"),
        ("label-type", "date"),
    ],
)
def test_value_out_of_range_is_refused_by_name(refused, folder, option, value):
    result = refused("--source", folder, "--model", "m.keras", f"--{option}", value)
    assert option in result.err or option.replace("-", "_") in result.err


def test_image_size_is_height_and_width():
    config = make_config({"sources": "x", "model": "m", "image_size": "20,30"})
    assert config.image_size == (20, 30)


def test_python_refuses_an_unknown_field():
    with pytest.raises(ValidationError, match="poling"):
        RunConfig(sources={"a": "x"}, model="m", poling="gap")


# YAML


def test_relative_paths_in_yaml_start_at_its_folder(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "job.yaml").write_text(
        "sources: {valid: data/valid, fn: 'my_data:make'}\n"
        "model: enc.keras\nweights: ../w.h5\nout: runs/1\n"
    )
    config = make_config(load_yaml(str(tmp_path / "conf" / "job.yaml")))
    base = tmp_path / "conf"
    assert config.sources == {"valid": str(base / "data/valid"), "fn": "my_data:make"}
    assert Path(config.model) == base / "enc.keras"
    assert Path(config.weights or "").resolve() == tmp_path / "w.h5"
    assert Path(config.out or "") == base / "runs/1"


def test_absolute_paths_and_uris_in_yaml_are_kept(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(
        "sources: [valid=/data/valid]\nmodel: my_models:encoder\nout: s3://bucket/runs/1\n"
    )
    config = make_config(load_yaml(str(file)))
    assert config.sources == {"valid": "/data/valid"}
    assert (config.model, config.out) == ("my_models:encoder", "s3://bucket/runs/1")


@pytest.mark.parametrize(
    "sources",
    ["sources: valid=pictures", "sources: [valid=pictures]", "sources: {valid: pictures}"],
)
def test_sources_in_yaml_are_text_a_list_or_a_mapping(tmp_path, sources):
    file = tmp_path / "job.yaml"
    file.write_text(f"{sources}\nmodel: m.keras\n")
    config = make_config(load_yaml(str(file)))
    assert config.sources == {"valid": str(tmp_path / "pictures")}


def test_yaml_takes_every_option_with_underscores_and_plural_names(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(
        """
sources: {valid: "data:make"}
source_kwargs: {valid: {n: 3}}
model: "models:make"
model_kwargs: {input_img_shape: [16, 16, 3]}
submodel: forward_model
imports: [custom]
layers: [a, b/c]
pool: gem
image_size: 16,20
scale: symmetric
engine: tensorflow
precision: float32
batch_size: 8
shard_size: 100
actors: 2
cpus_per_actor: 1
gpus_per_actor: 0
limit: 7
max_rejects: 3
overwrite: true
label_type: int
"""
    )
    config = make_config(load_yaml(str(file)))
    assert config.source_kwargs == {"valid": {"n": 3}}
    assert config.layers == ("a", "b/c")
    assert config.imports == ("custom",)
    assert config.image_size == (16, 20)
    assert (config.pool, config.scale, config.label_type) == ("gem", "symmetric", "int")
    assert (config.batch_size, config.limit, config.max_rejects) == (8, 7, 3)
    assert config.overwrite is True


def test_lists_in_model_kwargs_of_yaml_become_tuples(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(
        'sources: {v: "d:m"}\nmodel: "m:m"\nmodel_kwargs: {input_img_shape: [16, 16, 3]}\n'
    )
    config = make_config(load_yaml(str(file)))
    assert config.model_kwargs == {"input_img_shape": (16, 16, 3)}


def test_command_line_wins_over_yaml(refused, tmp_path):
    make_folder(tmp_path / "pictures", {"a": 1})
    (tmp_path / "job.yaml").write_text("sources: {valid: nowhere}\nmodel: file.keras\n")
    result = refused("--config", "job.yaml", "--source", "valid=pictures")
    assert "nowhere" not in result.err
    assert "file.keras" in result.err
    result = refused("--config", "job.yaml", "--source", "pictures", "--model", "other.keras")
    assert "other.keras" in result.err
    assert "file.keras" not in result.err


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("sources: [\nmodel: x", ["line 2"]),
        ("a: b: c\n", ["line 1"]),
        ("- just\n- a list\n", ["mapping"]),
        ("", ["mapping"]),
        ("sources: {v: x}\nmodel: m\npoling: gap\n", ["poling", "pool"]),
        ("sources: {v: x}\nmodel: m\nsource: x\n", ["source", "sources"]),
        ("sources: {v: x}\nmodel: m\nbatch-size: 3\n", ["batch-size", "batch_size"]),
        ("sources: {v: x}\nmodel: m\nbatch_size: many\n", ["batch_size"]),
        ("sources: {v: x}\nmodel: m\n1: 2\n", ["1"]),
        ("sources: 5\nmodel: m\n", ["sources"]),
        ("sources:\nmodel: m\n", ["source"]),
        ("sources: [{valid: x}]\nmodel: m\n", ["sources"]),
        ("sources: [3]\nmodel: m\n", ["sources"]),
        ("sources: {}\nmodel: m\n", ["sources"]),
        ("sources: {v: }\nmodel: m\n", ["'v'"]),
        ("sources: {v: x}\nmodel: m\nsource_kwargs: 3\n", ["source_kwargs"]),
        ("sources: {v: x, v: y}\nmodel: m\n", ["'v'", "duplicate"]),
        ("sources: [v=x, v=y]\nmodel: m\n", ["'v'", "duplicate"]),
    ],
)
def test_wrong_yaml_is_refused_by_name(refused, tmp_path, text, tokens):
    (tmp_path / "job.yaml").write_text(text)
    result = refused("--config", "job.yaml")
    for token in tokens:
        assert token in result.err


def test_missing_or_binary_yaml_file_is_refused(refused, tmp_path):
    assert "none.yaml" in refused("--config", "none.yaml").err
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "b.yaml" in refused("--config", "b.yaml").err


# The sources and the run folder, before anything is started


def test_missing_source_is_refused(refused):
    result = refused("--source", "valid=pics", "--model", "m.keras")
    assert "pics" in result.err
    assert "no such" in result.err


def test_file_of_another_kind_is_refused_as_a_source(refused, tmp_path):
    (tmp_path / "list.json").write_text("{}")
    result = refused("--source", "list.json", "--model", "m.keras")
    assert "list.json" in result.err
    assert ".csv" in result.err


def test_folder_without_images_is_refused(refused, tmp_path):
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    (tmp_path / "empty" / "sub" / "notes.txt").write_text("x")
    (tmp_path / "empty" / ".hidden.png").write_bytes(b"x")
    result = refused("--source", "empty", "--model", "m.keras")
    assert "empty" in result.err
    assert "no image" in result.err
    assert ".png" in result.err


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("file,label\nx.png,1\n", ["'path'", "file, label", "--path-column"]),
        ("path,Label\nx.png,1\n", ["'label'", "path, Label", "--label-column 'Label'"]),
        ("path,label\n", ["no rows"]),
        ("", ["list.csv"]),
        ("path,label\nx.png,1,2\n", ["list.csv"]),
        ("path,label\n,1\n", ["row 1", "path"]),
        ("path,label,path\nx.png,1,2\n", ["'path'", "duplicate"]),
        ("path,label,index\nx.png,1,2\n", ["'index'", "rename"]),
        ("path,label,key\nx.png,1,2\n", ["'key'", "rename"]),
        ("path,label,split\nx.png,1,2\n", ["'split'", "rename"]),
        ("path,label,feature\nx.png,1,2\n", ["'feature'", "rename"]),
        ("path,label,feature_x\nx.png,1,2\n", ["'feature_x'", "rename"]),
    ],
)
def test_wrong_listing_is_refused(refused, tmp_path, text, tokens):
    (tmp_path / "list.csv").write_text(text)
    result = refused("--source", "list.csv", "--model", "m.keras")
    for token in ["list.csv", *tokens]:
        assert token in result.err


def test_reserved_column_is_refused_with_other_path_and_label_columns(refused, tmp_path):
    (tmp_path / "list.csv").write_text("file,class,label\nx.png,1,2\n")
    options = ("--source", "list.csv", "--model", "m", "--path-column", "file")
    result = refused(*options, "--label-column", "class")
    assert "'label'" in result.err


def test_missing_model_is_refused(refused, folder):
    result = refused("--source", folder, "--model", "none.keras")
    assert "none.keras" in result.err
    assert "no such file" in result.err


@pytest.fixture
def ready(folder, tmp_path):
    """Options of a run that is complete except for the value of `--out`."""
    (tmp_path / "m.keras").write_bytes(b"")
    return ("--source", folder, "--model", tmp_path / "m.keras", "--out")


def test_file_as_out_is_refused(refused, ready, tmp_path):
    (tmp_path / "taken").write_text("x")
    assert "taken" in refused(*ready, "taken").err
    result = refused(*ready, "taken/below")
    assert "taken" in result.err
    assert "is a file" in result.err


def test_out_with_other_files_is_refused_even_with_overwrite(refused, ready, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    for more in ((), ("--overwrite",)):
        result = refused(*ready, "thesis", *more)
        assert "thesis" in result.err
        assert "--out" in result.err
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_folder_with_a_foreign_run_json_is_never_deleted(refused, ready, tmp_path):
    content = '{"name": "mine"}'
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "run.json").write_text(content)
    (tmp_path / "theirs" / "results.csv").write_text("years of work")
    for more in ((), ("--overwrite",)):
        result = refused(*ready, "theirs", *more)
        assert "theirs" in result.err
    assert (tmp_path / "theirs" / "run.json").read_text() == content
    assert (tmp_path / "theirs" / "results.csv").read_text() == "years of work"
