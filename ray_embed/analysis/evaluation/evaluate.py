# SPDX-License-Identifier: Apache-2.0
"""Evaluate the features of a run alongside baselines that need no training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ray_embed.analysis.evaluation import intervals, pixel_baseline, spectrum
from ray_embed.analysis.evaluation.label_kind import LabelKind, choose_label_kind, convert_labels
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.measures import FeatureEvaluation, evaluate_features
from ray_embed.analysis.evaluation.near_duplicates import (
    Duplicates,
    find_equal_features,
    find_near_duplicates,
)
from ray_embed.analysis.evaluation.protocol import Protocol
from ray_embed.core.arrays import Array
from ray_embed.errors import InputError
from ray_embed.options import DEFAULT_SAMPLE_SIZE
from ray_embed.projector import pca
from ray_embed.runs import sampling
from ray_embed.runs.reader import Output, RunReader
from ray_embed.runs.sampling import Subset
from ray_embed.sources.label_lists import is_list
from ray_embed.sources.label_schema import LabelCounts, describe_look_alikes
from ray_embed.storage import layout
from ray_embed.storage.filesystem import Folder

ENCODER, PIXELS, RANDOM = "encoder", "raw_pixels", "random_weights"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation of a layer's features.

    Attributes:
        layer: the layer.
        subset: the evaluated records.
        columns: the evaluation of the encoder and of its baselines, by name: "encoder",
            "raw_pixels" and "random_weights".
        of_all_records: the names of the encoder's measures that cover all records of the run.
        near_duplicates: images that are near-duplicates, or None if there are no thumbnails.
        equal_features: records whose features are equal.
        without_near_duplicates: the kNN measures, by column, over the evaluated records without a
            near-duplicate in the reference. Empty if none or all of them have one.
        unmatched: how many drawn records are left out because the run with random weights does not
            hold them.
        pool: how the layer's maps were pooled.
        notes: sentences about the labels.
    """

    layer: str
    subset: Subset
    columns: dict[str, FeatureEvaluation]
    of_all_records: tuple[str, ...]
    near_duplicates: Duplicates | None
    equal_features: Duplicates
    without_near_duplicates: dict[str, tuple[Measure, ...]]
    unmatched: int = 0
    pool: str = "none"
    notes: tuple[str, ...] = ()

    @property
    def measures(self) -> dict[str, Measure]:
        """The measures of the encoder, by name."""
        return {measure.name: measure for measure in self.columns[ENCODER].measures}


def evaluate(
    run: RunReader,
    layer: str | None = None,
    sample: int = DEFAULT_SAMPLE_SIZE,
    baseline: RunReader | None = None,
    labels: LabelKind | None = None,
) -> dict[str, Evaluation]:
    """Evaluate the features of one layer of a run, or of all its layers.

    Args:
        run: the run.
        layer: the layer to evaluate. If None, all layers are evaluated.
        sample: the maximum number of records to evaluate, drawn by split and label with a fixed
            seed. Fewer are drawn if their features would not fit into a gigabyte.
        baseline: the same run with random weights, to evaluate alongside it.
        labels: whether to treat numeric labels as "classes" or "values". If None, they are classes
            if they are integers, or floats that are all whole with at most 50 distinct values.

    Raises:
        InputError: shards are missing, the layer does not exist, there are no records, features are
            not finite, or `labels` is "values" and the labels are not numbers.
        DamagedError: a part differs from what was written.
        StorageError: a part cannot be read.
    """
    folder = run.folder
    outputs = select_outputs(run, layer)
    choice = choose_label_kind([folder], labels)
    drawn, unmatched = _draw_records(run, baseline, outputs, sample)
    records = convert_labels(drawn, choice.kind)
    notes = (*([choice.note] if choice.note else []), *_note_suspect_labels(records))
    pixels: dict[str, FeatureEvaluation] = {}
    near = None
    pictures = pixel_baseline.read_pictures(folder, records)
    if pictures is not None:
        near = find_near_duplicates(pictures, records.splits)
        pixels[PIXELS] = evaluate_features(pixel_baseline.use_as_features(records, pictures))

    def read_records(run: RunReader, layer: str) -> Subset:
        subset = sampling.read_records(
            run.folder, run.column_of(layer), records.index, records.total
        )
        return convert_labels(_check_features(run.folder, subset), choice.kind)

    evaluations: dict[str, Evaluation] = {}
    for output in outputs:
        subset = read_records(run, output.layer) if evaluations else records
        evaluated = {ENCODER: evaluate_features(subset), **pixels}
        if baseline is not None:
            evaluated[RANDOM] = evaluate_features(read_records(baseline, output.layer))
        evaluated[ENCODER], of_all = _replace_spectrum(evaluated[ENCODER], folder, output.column)
        evaluations[output.layer] = Evaluation(
            layer=output.layer,
            subset=subset,
            columns=evaluated,
            of_all_records=of_all,
            near_duplicates=near,
            equal_features=find_equal_features(subset.features, subset.splits),
            without_near_duplicates=_measure_without_duplicates(evaluated, near, subset),
            unmatched=unmatched,
            pool=output.pool,
            notes=notes,
        )
    return evaluations


def select_outputs(run: RunReader, layer: str | None) -> tuple[Output, ...]:
    """Return the outputs of a run to evaluate: that of one layer, or all of them.

    Raises:
        InputError: shards are missing, or there is no such layer.
        DamagedError: a part belongs to no planned shard.
    """
    run.require_finished()
    return run.outputs if layer is None else (run.output_of(layer),)


def _note_suspect_labels(subset: Subset) -> Iterator[str]:
    """Name text labels that may be mistakes: they mean "no label" or look like another label."""
    if not pa.types.is_string(subset.label_type) and not is_list(subset.label_type):
        return
    total = LabelCounts()
    by_split: dict[str, LabelCounts] = {}
    for split in dict.fromkeys(subset.splits):
        labels = pa.array(subset.labels[subset.splits == split].tolist(), subset.label_type)
        by_split[split] = LabelCounts()
        for counts in (total, by_split[split]):
            counts.add(labels)
    yield from total.notes()
    yield from describe_look_alikes({split: counts.counts for split, counts in by_split.items()})


def _draw_records(
    run: RunReader, baseline: RunReader | None, outputs: Sequence[Output], sample: int
) -> tuple[Subset, int]:
    """Draw records with the features of the first layer, and count those the baseline lacks.

    The records that the baseline lacks are left out, so that both are evaluated on the same
    records.
    """
    widest = max(output.dimension for output in outputs)
    drawn = sampling.draw_sample(
        run.folder, outputs[0].column, sampling.limit_by_memory(sample, widest)
    )
    if baseline is None:
        return _check_features(run.folder, drawn), 0
    kept = sampling.find_existing_records(baseline.folder, drawn.index)
    both = sampling.select_rows(drawn, np.flatnonzero(kept))
    return _check_features(run.folder, both), len(drawn) - len(both)


def _check_features(folder: Folder, subset: Subset) -> Subset:
    if not len(subset):
        raise InputError(
            f"{folder.display_path()}: all records were rejected, so there is nothing to evaluate; "
            f"see {folder.display_path(layout.REJECTS)}"
        )
    sampling.check_finite(subset, folder.display_path())
    return subset


def _replace_spectrum(
    evaluated: FeatureEvaluation, folder: Folder, column: str
) -> tuple[FeatureEvaluation, tuple[str, ...]]:
    """Replace spectrum measures with those over all records, if known, and return their names."""
    try:
        components = pca.load(folder, column)
    except InputError:
        return evaluated, ()
    if not components.is_complete:
        # The measures need the eigenvalues of all components.
        return evaluated, ()
    of_all = {
        measure.name: measure for measure in spectrum.measure_covariance(components.variances)
    }
    measures = tuple(of_all.get(measure.name, measure) for measure in evaluated.measures)
    return replace(evaluated, measures=measures), tuple(of_all)


def _measure_without_duplicates(
    evaluated: dict[str, FeatureEvaluation], near: Duplicates | None, subset: Subset
) -> dict[str, tuple[Measure, ...]]:
    """Restrict the kNN measures to the records without a near-duplicate in the reference."""
    protocol = evaluated[ENCODER].protocol
    if near is None or not isinstance(protocol, Protocol):
        return {}
    leaks = near.select(subset.splits[protocol.reference])
    if not leaks[protocol.evaluated].any() or leaks[protocol.evaluated].all():
        return {}
    return {
        name: tuple(
            _restrict(measure, ~leaks)
            for measure in column.measures
            if measure.name.startswith("knn_")
        )
        for name, column in evaluated.items()
    }


def _restrict(measure: Measure, kept: Array) -> Measure:
    """Restrict a mean to the records that `kept` (N,) bool selects."""
    values, records = measure.per_record, measure.records
    assert values is not None and records is not None  # noqa: S101 - all are means
    rows = kept[records]
    return replace(
        measure,
        value=float(values[rows].mean()),
        interval=intervals.compute_mean_interval(values[rows]),
        per_record=values[rows],
        records=records[rows],
    )
