# SPDX-License-Identifier: Apache-2.0
"""Folders whose names are no text, for each thing that a path is given for."""

import os
import shutil

import pytest
from support.pictures import make_folder
from support.sample_runs import read_parts, save_encoder, write_listing

ODD = os.fsdecode(b"K\xf6ln")


@pytest.fixture
def inputs(tmp_path):
    make_folder(tmp_path / "valid", {"a": 3})
    write_listing(tmp_path / "listed", ["x", "y", "z"])
    save_encoder(tmp_path / "encoder.keras")
    (tmp_path / ODD).mkdir()
    return tmp_path


@pytest.mark.parametrize("source", ["valid", "listed/list.csv"])
def test_source(inputs, ray_embed, source):
    top = source.split("/")[0]
    shutil.move(inputs / top, inputs / ODD / top)
    words = ["--model", "encoder.keras", "--out", "run"]
    result = ray_embed("extract", "--source", f"valid={ODD}/{source}", *words)
    assert "Traceback" not in result.err
    if result.code:
        assert result.code == 2
        assert r"K\xf6ln" in result.err
        assert "not UTF-8" in result.err
    else:
        assert read_parts(inputs / "run").num_rows == 3
        assert ray_embed("extract", "--source", f"valid={ODD}/{source}", *words).code == 0
        assert ray_embed("status", "run", "--verify").code == 0


@pytest.mark.parametrize("option", ["--model", "--out"])
def test_model_and_out(inputs, ray_embed, option):
    shutil.copy(inputs / "encoder.keras", inputs / ODD / "encoder.keras")
    words = {"--source": "valid", "--model": "encoder.keras", "--out": "run"}
    words[option] = f"{ODD}/{words[option]}"
    result = ray_embed("extract", *(word for pair in words.items() for word in pair))
    assert "Traceback" not in result.err
    if option == "--out":
        assert result.code == 2
        assert r"K\xf6ln/run: its name is not UTF-8" in result.err
    else:
        assert result.code in (0, 2)
