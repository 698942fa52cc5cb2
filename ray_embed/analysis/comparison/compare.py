# SPDX-License-Identifier: Apache-2.0
"""Compares runs: the measures of each on the same records, their differences, their likeness."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ray_embed.analysis.comparison import common_records, similarity
from ray_embed.analysis.comparison.columns import Column, columns
from ray_embed.analysis.comparison.common_records import Records
from ray_embed.analysis.evaluation import pixel_baseline
from ray_embed.analysis.evaluation.differences import Difference, best, difference, interval_of_mean
from ray_embed.analysis.evaluation.intervals import Interval
from ray_embed.analysis.evaluation.label_kind import LabelKind
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.analysis.evaluation.measures import measures
from ray_embed.options import SAMPLE_RECORDS
from ray_embed.runs.sampling import Subset, check_finite, limit_by_memory

NEIGHBOURS = 10
# Unbiased HSIC is defined from here on.
_LEAST = 4


@dataclass(frozen=True)
class Row:
    """A measure of all columns.

    `measures` and `differences` (to the first column) have an item a column, None where there is
    none. `pixels` is that of raw pixels, None where they are not known. `best` is the column that
    is better than the second best one beyond the interval of their difference, None where none
    is. `higher_is_better` is None where it is no verdict.
    """

    name: str
    measures: tuple[Measure | None, ...]
    differences: tuple[Difference | None, ...]
    pixels: Measure | None
    best: int | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class Likeness:
    """How alike two columns see the same records.

    `common` is the share of common neighbours, of the `k` nearest by cosine, in the mean over
    the records, with its 95 % interval; `cka` the unbiased linear CKA; NaN where undefined.
    """

    first: int
    second: int
    k: int
    common: float
    interval: Interval | None
    cka: float


@dataclass(frozen=True)
class Comparison:
    """Runs, or layers of runs, side by side.

    `judged` are the numbers of records that the columns were judged on: the same ones where
    `paired`. `counts` are those that their runs hold, `shared` of them by all. `notes` are
    sentences on what to mind.
    """

    columns: tuple[Column, ...]
    counts: tuple[int, ...]
    shared: int
    judged: tuple[int, ...]
    paired: bool
    rows: tuple[Row, ...]
    likeness: tuple[Likeness, ...]
    notes: tuple[str, ...]


def compare(
    runs: Sequence[str],
    layer: str | None = None,
    sample: int = SAMPLE_RECORDS,
    say: Callable[[str], None] = lambda line: None,
    labels: LabelKind | None = None,
) -> Comparison:
    """Judge runs on the records that all of them hold.

    The features of the records drawn, of all columns, are in memory together: fewer are drawn where
    they would not fit into a gigabyte.

    Args:
        runs: run folders, paths or URIs; one will do if it has several layers.
        layer: the layer to take of each; else a run with several layers is a column a layer.
        sample: how many records at most; drawn by split and label with a fixed seed.
        say: takes a line for the user before each longer step.
        labels: whether labels that are numbers are "classes" or "values"; None for classes where
            they are whole numbers, or floats that are all whole and of at most 50 values.

    Raises:
        InputError: no such run or layer, or runs that cannot be compared.
        DamagedError: a part is not what was written.
        StorageError: a part cannot be read.
    """
    compared = columns([str(run) for run in runs], layer)
    sample = limit_by_memory(sample, sum(column.dimension for column in compared))
    say(f"drawing at most {sample:,} records")
    drawn = common_records.draw(compared, sample, labels)
    found = []
    for column, subset in zip(compared, drawn.subsets, strict=True):
        check_finite(subset, column.name)
    for column, subset in zip(compared, drawn.subsets, strict=True):
        say(f"judging {column.name} on {len(subset):,} records")
        found.append({measure.name: measure for measure in measures(subset)})
    floor = _raw_pixels(compared[0], drawn, say)
    names = dict.fromkeys(name for one in found for name in one)
    rows = tuple(
        _row(name, [one.get(name) for one in found], floor.get(name), drawn.paired)
        for name in names
    )
    alike: tuple[Likeness, ...] = ()
    if drawn.paired and len(drawn.subsets[0]) >= _LEAST:
        say("comparing neighbourhoods")
        alike = tuple(_alike(drawn.subsets))
    return Comparison(
        compared,
        drawn.counts,
        drawn.shared,
        tuple(len(subset) for subset in drawn.subsets),
        drawn.paired,
        rows,
        alike,
        tuple(_notes(compared, drawn)),
    )


def _raw_pixels(column: Column, drawn: Records, say: Callable[[str], None]) -> dict[str, Measure]:
    """Judge the pictures of the records, where all are judged on the same and thumbnails are."""
    if not drawn.paired:
        return {}
    subset = drawn.subsets[0]
    pictures = pixel_baseline.of(column.folder, subset)
    if pictures is None:
        return {}
    say("judging raw pixels, for what no encoder would give")
    return {one.name: one for one in measures(pixel_baseline.as_features(subset, pictures))}


def _row(name: str, found: Sequence[Measure | None], floor: Measure | None, same: bool) -> Row:
    base = found[0]
    differences = [difference(one, base, same) if one and base else None for one in found[1:]]
    verdicts = [one.higher_is_better for one in found if one]
    return Row(name, tuple(found), (None, *differences), floor, best(found, same), verdicts[0])


def _alike(subsets: Sequence[Subset]) -> Iterator[Likeness]:
    k = min(NEIGHBOURS, len(subsets[0]) - 1)
    near = [similarity.neighbours(subset.features, k) for subset in subsets]
    cka = similarity.cka([subset.features for subset in subsets])
    for a, b in combinations(range(len(subsets)), 2):
        shares = similarity.common(near[a], near[b])
        mean = float(np.mean(shares))
        yield Likeness(a, b, k, mean, interval_of_mean(shares), float(cka[a, b]))


def _notes(compared: Sequence[Column], drawn: Records) -> Iterator[str]:
    if drawn.label_note:
        yield drawn.label_note
    if not drawn.paired:
        yield (
            f"the runs share {drawn.shared:,} records only (the same split and key): each is "
            "judged on its own, so differences may be those of the records"
        )
    elif any(count > drawn.shared for count in drawn.counts):
        held = {column.name: n for column, n in zip(compared, drawn.counts, strict=True)}
        numbers = ", ".join(f"{name} {n:,}" for name, n in held.items() if n > drawn.shared)
        yield f"judged among the {drawn.shared:,} records that all hold ({numbers})"
    count, first = drawn.relabelled
    if count:
        yield (
            f"labels differ for {count:,} of the {len(drawn.subsets[0]):,} records judged, each "
            f"run is judged by its own; the first: {first}"
        )
