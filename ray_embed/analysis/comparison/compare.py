# SPDX-License-Identifier: Apache-2.0
"""Compare runs: their measures on the same records, the differences, and how similar they are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ray_embed.analysis.comparison.columns import Column, list_columns
from ray_embed.analysis.comparison.common_records import Records, draw_common_records
from ray_embed.analysis.comparison.similarity import compute_cka, count_common, find_nearest
from ray_embed.analysis.evaluation import pixel_baseline
from ray_embed.analysis.evaluation.differences import Difference, find_best, subtract
from ray_embed.analysis.evaluation.intervals import Interval, compute_bootstrap_interval
from ray_embed.analysis.evaluation.label_kind import LabelKind
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.measures import evaluate_features
from ray_embed.analysis.evaluation.protocol import LISTS_NOTE
from ray_embed.options import DEFAULT_SAMPLE_SIZE
from ray_embed.runs.sampling import Subset, check_finite, limit_by_memory
from ray_embed.sources.label_lists import is_list

NEIGHBORS = 10
# The unbiased HSIC needs at least this many records.
_MIN_HSIC_RECORDS = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measure of all columns.

    `measures` and `differences` (from the first column) have one item per column, which is None if
    the column has no such value. `pixels` is the measure of raw pixels, or None if they are not
    known. `best` is the position of the best column if the interval of its difference from the
    second best excludes zero, and None otherwise. `higher_is_better` is None if the measure does
    not tell which column is better.
    """

    name: str
    measures: tuple[Measure | None, ...]
    differences: tuple[Difference | None, ...]
    pixels: Measure | None
    best: int | None
    higher_is_better: bool | None


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How similar two columns are on the same records.

    `common` is the mean share of common neighbors among the `k` nearest by cosine, with its 95 %
    interval. `cka` is the unbiased linear CKA, or NaN if it is undefined.
    """

    first: int
    second: int
    k: int
    common: float
    interval: Interval | None
    cka: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs, or layers of runs, side by side.

    `evaluated` holds the number of records that each column was evaluated on; they are the same
    records if `paired`. `counts` holds the number of records in each column's run; `shared` is the
    number of records that all runs have in common. `notes` are sentences for the reader.
    """

    columns: tuple[Column, ...]
    counts: tuple[int, ...]
    shared: int
    evaluated: tuple[int, ...]
    paired: bool
    rows: tuple[Row, ...]
    similarities: tuple[Similarity, ...]
    notes: tuple[str, ...]


def compare(
    runs: Sequence[str],
    layer: str | None = None,
    sample: int = DEFAULT_SAMPLE_SIZE,
    say: Callable[[str], None] = lambda line: None,
    labels: LabelKind | None = None,
) -> Comparison:
    """Evaluate runs on the records that all of them hold.

    The features of the drawn records are held in memory for all columns at once. Fewer records are
    drawn if their features would not fit into a gigabyte.

    Args:
        runs: run folders, paths or URIs. One is enough if it has several layers.
        layer: the layer to take from each run. If None, all layers are taken, each as a column.
        sample: the maximum number of records, drawn by split and label with a fixed seed.
        say: prints a line for the user before each longer step.
        labels: whether to treat numeric labels as "classes" or "values". If None, they are classes
            if they are integers, or floats that are all whole with at most 50 distinct values.

    Raises:
        InputError: a run or the layer does not exist, or the runs cannot be compared.
        DamagedError: a part differs from what was written.
        StorageError: a part cannot be read.
    """
    columns = list_columns([str(run) for run in runs], layer)
    sample = limit_by_memory(sample, sum(column.dimension for column in columns))
    say(f"drawing at most {sample:,} records")
    drawn = draw_common_records(columns, sample, labels)
    for column, subset in zip(columns, drawn.subsets, strict=True):
        check_finite(subset, column.name)
    measures = []
    for column, subset in zip(columns, drawn.subsets, strict=True):
        say(f"evaluating {column.name} on {len(subset):,} records")
        measures.append(_measure_by_name(subset))
    pixels = _evaluate_pixels(columns[0], drawn, say)
    names = dict.fromkeys(name for by_name in measures for name in by_name)
    rows = tuple(
        _make_row(name, [by_name.get(name) for by_name in measures], pixels.get(name), drawn.paired)
        for name in names
    )
    similarities: tuple[Similarity, ...] = ()
    if drawn.paired and len(drawn.subsets[0]) >= _MIN_HSIC_RECORDS:
        say("comparing neighborhoods")
        similarities = tuple(_compare_pairs(drawn.subsets))
    return Comparison(
        columns=columns,
        counts=drawn.counts,
        shared=drawn.shared,
        evaluated=tuple(len(subset) for subset in drawn.subsets),
        paired=drawn.paired,
        rows=rows,
        similarities=similarities,
        notes=tuple(_list_notes(columns, drawn)),
    )


def _measure_by_name(subset: Subset) -> dict[str, Measure]:
    return {measure.name: measure for measure in evaluate_features(subset).measures}


def _evaluate_pixels(
    column: Column, drawn: Records, say: Callable[[str], None]
) -> dict[str, Measure]:
    """Evaluate the records' thumbnails, if they exist and all columns use the same records."""
    if not drawn.paired:
        return {}
    subset = drawn.subsets[0]
    pictures = pixel_baseline.read_pictures(column.folder, subset)
    if pictures is None:
        return {}
    say("evaluating raw pixels, as a baseline without any encoder")
    return _measure_by_name(pixel_baseline.use_as_features(subset, pictures))


def _make_row(
    name: str,
    measures: Sequence[Measure | None],
    pixels: Measure | None,
    same_records: bool,
) -> Row:
    base = measures[0]
    differences = [
        subtract(measure, base, same_records) if measure and base else None
        for measure in measures[1:]
    ]
    known = next(measure for measure in measures if measure)
    return Row(
        name=name,
        measures=tuple(measures),
        differences=(None, *differences),
        pixels=pixels,
        best=find_best(measures, same_records),
        higher_is_better=known.higher_is_better,
    )


def _compare_pairs(subsets: Sequence[Subset]) -> Iterator[Similarity]:
    k = min(NEIGHBORS, len(subsets[0]) - 1)
    nearest = [find_nearest(subset.features, k) for subset in subsets]
    cka = compute_cka([subset.features for subset in subsets])
    for first, second in combinations(range(len(subsets)), 2):
        shares = count_common(nearest[first], nearest[second]) / k
        yield Similarity(
            first=first,
            second=second,
            k=k,
            common=float(np.mean(shares)),
            interval=compute_bootstrap_interval(shares),
            cka=float(cka[first, second]),
        )


def _list_notes(columns: Sequence[Column], drawn: Records) -> Iterator[str]:
    if drawn.label_note:
        yield drawn.label_note
    if is_list(drawn.subsets[0].label_type):
        yield LISTS_NOTE
    if not drawn.paired:
        yield (
            f"the runs share only {drawn.shared:,} records (with the same split and key): each is "
            "evaluated on its own records, so differences may be those of the records"
        )
    elif any(count > drawn.shared for count in drawn.counts):
        counts = {column.name: n for column, n in zip(columns, drawn.counts, strict=True)}
        numbers = ", ".join(f"{name} {n:,}" for name, n in counts.items() if n > drawn.shared)
        yield f"only the {drawn.shared:,} records that all runs hold are used ({numbers})"
    count, first = drawn.relabeled
    if count:
        yield (
            f"labels differ for {count:,} of the {len(drawn.subsets[0]):,} evaluated records; each "
            f"run is evaluated by its own labels; the first: {first}"
        )
