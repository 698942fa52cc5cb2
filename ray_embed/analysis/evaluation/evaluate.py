# SPDX-License-Identifier: Apache-2.0
"""Judges a run: its features, beside what no training at all would give."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.analysis.evaluation import intervals, pixel_baseline, spectrum
from ray_embed.analysis.evaluation import near_duplicates as near_duplicates_module
from ray_embed.analysis.evaluation.label_kind import LabelKind, choose_labels, with_labels
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.measures import Judgement, judge
from ray_embed.analysis.evaluation.near_duplicates import Duplicates
from ray_embed.analysis.evaluation.protocol import Trial
from ray_embed.core.arrays import Array
from ray_embed.errors import InputError
from ray_embed.options import SAMPLE_RECORDS
from ray_embed.projector import pca
from ray_embed.runs import sampling as subsets
from ray_embed.runs.reader import Output, RunReader
from ray_embed.runs.sampling import Subset
from ray_embed.sources.label_schema import LabelCounts, look_alikes
from ray_embed.storage import layout
from ray_embed.storage.filesystem import Folder

ENCODER, PIXELS, RANDOM = "encoder", "raw_pixels", "random_weights"


@dataclass(frozen=True)
class Evaluation:
    """How good the features of a layer are.

    `subset` are the records they were judged on. `columns` are what was found of the encoder and,
    beside it, of its floors, by name: "encoder", "raw_pixels" and "random_weights". `over_all` are
    the names of those measures of the encoder that are over all records. `near` are the pictures
    that are near-duplicates, None where there are no thumbnails; `equal` the features that are the
    same; `without` the kNN measures, by column, of records that have no near-duplicate in the
    reference, empty where none has. `apart` is how many of the records drawn are left out, as the
    run with random weights holds none of them; `pool` is how the layer's maps were pooled. `notes`
    are sentences on the labels.
    """

    layer: str
    subset: Subset
    columns: dict[str, Judgement]
    over_all: tuple[str, ...]
    near: Duplicates | None
    equal: Duplicates
    without: dict[str, tuple[Measure, ...]]
    apart: int = 0
    pool: str = "none"
    notes: tuple[str, ...] = ()

    @property
    def measures(self) -> dict[str, Measure]:
        """What was found of the encoder, by name."""
        return {one.name: one for one in self.columns[ENCODER].measures}

    def to_json(self) -> dict[str, Any]:
        """Give all of it as plain data."""
        from ray_embed.analysis.evaluation.to_json import plain

        return plain(self)

    def lines(self) -> Iterator[str]:
        """Give it as a table."""
        from ray_embed.analysis.evaluation.report import lines

        return lines(self.layer, self.to_json())


def evaluate(
    run: RunReader,
    layer: str | None = None,
    sample: int = SAMPLE_RECORDS,
    baseline: RunReader | None = None,
    labels: LabelKind | None = None,
) -> dict[str, Evaluation]:
    """Judge the features of a run, of one layer or all.

    Args:
        run: the run.
        layer: which layer; None for all.
        sample: how many records at most are judged, drawn by split and label with a fixed seed;
            fewer where their features would not fit into a gigabyte.
        baseline: the same run with random weights, to evaluate beside it.
        labels: whether labels that are numbers are "classes" or "values"; None for classes where
            they are whole numbers, or floats that are all whole and of at most 50 values.

    Raises:
        InputError: shards are missing, there is no such layer or no record, features are not
            finite, or labels that are no numbers are to be values.
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    folder = run.folder
    outputs = require_layers(run, layer)
    choice = choose_labels([folder], labels)
    drawn, apart = _drawn(run, baseline, outputs, sample)
    records = with_labels(drawn, choice.kind)
    notes = (*([choice.note] if choice.note else []), *_label_notes(records))
    floors: dict[str, Judgement] = {}
    near = None
    pictures = pixel_baseline.of(folder, records)
    if pictures is not None:
        near = near_duplicates_module.near_duplicates(pictures, records.splits)
        floors[PIXELS] = judge(pixel_baseline.as_features(records, pictures))

    def read_subset(run: RunReader, layer: str) -> Subset:
        subset = subsets.read_records(
            run.folder, run.column_of(layer), records.index, records.total
        )
        return with_labels(_finite(run.folder, subset), choice.kind)

    found: dict[str, Evaluation] = {}
    for output in outputs:
        subset = read_subset(run, output.layer) if found else records
        judged = {ENCODER: judge(subset), **floors}
        if baseline is not None:
            judged[RANDOM] = judge(read_subset(baseline, output.layer))
        judged[ENCODER], over_all = _over_all(judged[ENCODER], folder, output.column)
        equal = near_duplicates_module.equal_features(subset.features, subset.splits)
        without = _without(judged, near, subset)
        found[output.layer] = Evaluation(
            output.layer, subset, judged, over_all, near, equal, without, apart, output.pool, notes
        )
    return found


def require_layers(run: RunReader, layer: str | None) -> tuple[Output, ...]:
    """Return what there is to evaluate of a run: the features of one layer, or of all.

    Raises:
        InputError: shards are missing, or there is no such layer.
        DamagedError: a part is of no shard that was planned.
    """
    run.require_finished()
    return run.outputs if layer is None else (run.output_of(layer),)


def _label_notes(subset: Subset) -> Iterator[str]:
    """Say which text labels may be mistakes: of no label, or names that look the same."""
    if not pa.types.is_string(subset.label_type):
        return
    every = LabelCounts()
    by_split: dict[str, LabelCounts] = {}
    for split in dict.fromkeys(subset.splits):
        own = pa.array(subset.labels[subset.splits == split].tolist(), pa.string())
        by_split[split] = LabelCounts()
        for counts in (every, by_split[split]):
            counts.add(own)
    yield from every.notes()
    yield from look_alikes({split: one.counts for split, one in by_split.items()})


def _drawn(
    run: RunReader, floor: RunReader | None, outputs: Sequence[Output], sample: int
) -> tuple[Subset, int]:
    """Draw records, with the features of the first layer; those that the floor lacks are counted.

    They are left out: what one of both has set aside would make them unlike.
    """
    widest = max(output.dimension for output in outputs)
    drawn = subsets.draw_sample(
        run.folder, outputs[0].column, subsets.limit_by_memory(sample, widest)
    )
    if floor is None:
        return _finite(run.folder, drawn), 0
    kept = subsets.find_held_records(floor.folder, drawn.index)
    both = subsets.select_rows(drawn, np.flatnonzero(kept))
    return _finite(run.folder, both), len(drawn) - len(both)


def _finite(folder: Folder, subset: Subset) -> Subset:
    if not len(subset):
        raise InputError(
            f"{folder.display_path()}: every record was rejected, so there is nothing to judge; "
            f"see {folder.display_path(layout.REJECTS)}"
        )
    subsets.check_finite(subset, folder.display_path())
    return subset


def _over_all(judged: Judgement, folder: Folder, column: str) -> tuple[Judgement, tuple[str, ...]]:
    """Let the spectrum be that of all records, where it is known."""
    try:
        found = pca.load(folder, column)
    except InputError:
        return judged, ()
    if not found.is_complete:
        # The first components say nothing of the others.
        return judged, ()
    whole = {one.name: one for one in spectrum.of_covariance(found.variances)}
    kept = tuple(whole.get(one.name, one) for one in judged.measures)
    return replace(judged, measures=kept), tuple(whole)


def _without(
    judged: dict[str, Judgement], near: Duplicates | None, subset: Subset
) -> dict[str, tuple[Measure, ...]]:
    trial = judged[ENCODER].trial
    if near is None or not isinstance(trial, Trial):
        return {}
    leaks = near.among(subset.splits[trial.reference])
    if not leaks[trial.judged].any() or leaks[trial.judged].all():
        return {}
    return {
        name: tuple(_only(one, ~leaks) for one in column.measures if one.name.startswith("knn_"))
        for name, column in judged.items()
    }


def _only(measure: Measure, kept: Array) -> Measure:
    assert measure.each is not None and measure.judged is not None  # noqa: S101 - they are means
    rows = kept[measure.judged]
    each = measure.each[rows]
    return replace(
        measure,
        value=float(each.mean()),
        interval=intervals.of_mean(each),
        each=each,
        judged=measure.judged[rows],
    )
