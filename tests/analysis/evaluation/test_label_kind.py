# SPDX-License-Identifier: Apache-2.0
"""Numbers as labels: classes where they are few and whole, values otherwise, or as asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.command import Command
from support.synthetic_runs import clusters, make_run

import ray_embed as package
from ray_embed import InputError
from ray_embed.analysis.evaluation.to_json import evaluation_to_json
from ray_embed.analysis.plotting import projections
from ray_embed.analysis.plotting.plot import plot


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """Make a run of clusters whose labels are those given, in one split."""

    def make(labels: Any, name: str = "run", kind: pa.DataType | None = None) -> str:
        values = [None if label is None else label for label in labels]
        features, _ = clusters(2, len(values))
        return str(make_run(tmp_path / name, features, values, label_type=kind))

    return make


def evaluate(run: str, **options: Any) -> dict[str, Any]:
    return evaluation_to_json(package.load(run).evaluate(**options)["top"])


CODES = clusters(2, 120)[1]


def test_floats_that_are_few_and_whole_are_classes_and_it_is_said(made):
    run = made(CODES.astype(float).tolist())
    found = evaluate(run)
    assert found["labels"] == "classes"
    assert "knn_5_cosine" in found["measures"]["encoder"]
    assert {one["label"] for one in found["classes"]} == {0, 1}
    note = found["notes"][0]
    for token in ("floats", "2 values", "(0, 1)", "classes", "--labels values"):
        assert token in note
    # Where it is asked for nothing is left to say.
    assert not any("--labels" in note for note in evaluate(run, labels="classes")["notes"])
    values = evaluate(run, labels="values")
    assert values["labels"] == "values"
    assert "knn_r2_5_cosine" in values["measures"]["encoder"]


def test_missing_labels_do_not_make_classes_values(made):
    labels = [*CODES.astype(float)[:100].tolist(), *[None] * 10, *[float("nan")] * 10]
    found = evaluate(made(labels))
    assert found["labels"] == "classes"
    assert {one["label"] for one in found["classes"]} == {0, 1}


@pytest.mark.parametrize(
    "labels",
    [
        (CODES + 0.5).tolist(),
        np.arange(120).astype(float).tolist(),
        # Few, but hardly any of them twice.
        [*map(float, range(40)), 1.0, 2.0],
        [*map(float, range(51))] * 3,
    ],
)
def test_other_floats_are_values(made, labels):
    run = made(labels)
    found = evaluate(run)
    assert found["labels"] == "values"
    assert not any("--labels" in note for note in found["notes"])


def test_what_is_not_drawn_counts_too(made):
    # All but one are whole; so few are drawn that it may not be among them.
    run = made([*CODES.astype(float).tolist(), 0.5])
    assert evaluate(run, sample=20)["labels"] == "values"


def test_classes_may_be_asked_of_any_numbers_and_values_of_whole_ones(made):
    halves = evaluate(made((CODES + 0.5).tolist(), "halves"), labels="classes")
    assert {one["label"] for one in halves["classes"]} == {0.5, 1.5}
    whole = made((CODES * 3).tolist(), "whole")
    assert evaluate(whole)["labels"] == "classes"
    assert evaluate(whole, labels="values")["labels"] == "values"


def test_values_of_text_are_refused(made):
    run = made([f"c{code}" for code in CODES])
    with pytest.raises(InputError, match=r"'c\d'"):
        evaluate(run, labels="values")
    with pytest.raises(InputError, match="'classes' or 'values'"):
        evaluate(run, labels="numbers")


def test_compare_takes_floats_and_whole_numbers_for_the_same_classes(made):
    floats = made(CODES.astype(float).tolist(), "floats")
    whole = made(CODES.tolist(), "whole")
    found = package.compare([floats, whole])
    assert "knn_5_cosine" in {row.name for row in found.rows}
    (note,) = found.notes
    assert "treated as classes" in note
    found = package.compare([floats, whole], labels="values")
    assert "knn_r2_5_cosine" in {row.name for row in found.rows}
    assert found.notes == ()
    # One of both has values that are not whole: then neither has classes.
    halves = made((CODES / 2).tolist(), "halves")
    assert "knn_r2_5_cosine" in {row.name for row in package.compare([floats, halves]).rows}
    with pytest.raises(InputError, match="--labels classes"):
        package.compare([whole, halves])


def test_labels_that_may_be_mistakes_are_notes_of_the_report(made):
    labels = [["cat", "dog", "NA", "cat "][at % 4] for at in range(120)]
    notes = evaluate(made(labels))["notes"]
    assert "'NA' (30)" in notes[0]
    assert "look the same" in notes[1]
    assert "'cat ' in valid" in notes[1]


def test_the_commands_have_the_option(made, ray_embed: Command, tmp_path: Path):
    run = made(CODES.astype(float).tolist())
    done = ray_embed("evaluate", run)
    assert "note: the labels are floats, but all" in done.out
    assert "knn_5_cosine" in done.out
    assert "knn_r2_5_cosine" in ray_embed("evaluate", run, "--labels", "values").out
    other = made(CODES.tolist(), "other")
    assert "knn_r2_5_cosine" in ray_embed("compare", run, other, "--labels", "values").out


def test_plot_draws_classes_or_a_scale(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Maps take long, and are not what this is about.
    monkeypatch.setattr(projections, "has_umap", lambda: False)
    monkeypatch.setattr(projections, "run_tsne", lambda components, size: components[:, :size])
    said: list[str] = []
    run = made(CODES.astype(float).tolist())
    plot(run, None, said.append)
    assert (tmp_path / "run" / "plots" / "confusion.png").exists()
    assert any("treated as classes" in line for line in said)
    (tmp_path / "run" / "plots" / "confusion.png").unlink()
    plot(run, None, said.append, "values")
    assert not (tmp_path / "run" / "plots" / "confusion.png").exists()
