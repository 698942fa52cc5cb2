# SPDX-License-Identifier: Apache-2.0
"""Format a comparison as text for a terminal. Wide tables are split into stacked blocks."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_embed.analysis.comparison.columns import Column
from ray_embed.analysis.comparison.compare import Comparison, Row
from ray_embed.analysis.evaluation.differences import compare_measures
from ray_embed.analysis.evaluation.intervals import Interval
from ray_embed.analysis.evaluation.measure import Measure
from ray_embed.core.text_table import GAP, align

_BEST = "*"
# If any name is longer, the tables show numbers, which the list above them maps to names.
_MAX_NAME_LENGTH = 24
# More pairs than this are shown as a matrix instead of one line each.
_MAX_PAIR_LINES = 6


@dataclass(frozen=True)
class _TableColumn:
    """A column of a table: its head, and a cell for each row."""

    head: str
    cells: list[str]

    @property
    def width(self) -> int:
        return max(map(len, [self.head, *self.cells]))


def format_comparison(comparison: Comparison, width: int) -> Iterator[str]:
    """Yield the lines of a comparison, each at most `width` characters if the names allow it."""
    names = _shorten_names(comparison)
    yield from _format_columns(comparison, names, width)
    yield from _format_measures(comparison, names, width)
    yield ""
    yield from _format_similarities(comparison, names, width)
    yield ""
    for line in _format_verdicts(comparison, names):
        yield from textwrap.wrap(line, width, break_long_words=False)


def _shorten_names(comparison: Comparison) -> list[str]:
    names = [column.name for column in comparison.columns]
    if max(map(len, names)) <= _MAX_NAME_LENGTH:
        return names
    return [f"#{number}" for number in range(1, len(names) + 1)]


def _format_columns(comparison: Comparison, names: Sequence[str], width: int) -> Iterator[str]:
    """List what is compared."""
    rows = []
    for name, column, evaluated, count in zip(
        names, comparison.columns, comparison.evaluated, comparison.counts, strict=True
    ):
        number = [] if name == column.name else [name]
        dimensions = f"{column.dimension:,} dimensions"
        records = f"{evaluated:,} of {count:,} records"
        rows.append([*number, column.name, _describe_layer(column), dimensions, records])
    yield from align(rows)
    for note in comparison.notes:
        yield from textwrap.wrap(f"note: {note}", width, break_long_words=False)
    yield ""


def _describe_layer(column: Column) -> str:
    pooled = "" if column.pool == "none" else f" ({column.pool})"
    return f"layer {column.layer}{pooled}"


def _format_measures(comparison: Comparison, names: Sequence[str], width: int) -> Iterator[str]:
    rows = comparison.rows
    columns = [
        _TableColumn(name, [_format_value(row, position) for row in rows])
        for position, name in enumerate(names)
    ]
    if any(row.pixels for row in rows):
        columns.append(_TableColumn("raw pixels", [_format_cell(row.pixels) for row in rows]))
    if len(names) == 2:
        # One table is enough for values and differences.
        differences = [_format_difference(row, 1) for row in rows]
        columns.append(_TableColumn(f"{names[1]} - {names[0]}", differences))
    yield from _format_blocks(_name_rows(rows), columns, width)
    yield "↑ higher is better, ↓ lower is better, the others are no verdict"
    yield f"{_BEST} better than the second best beyond the interval; without one no clear best"
    kind = "on the same records, paired" if comparison.paired else "on other records, unpaired"
    yield f"[ ] 95 % interval of the difference, {kind}"
    rows = tuple(row for row in rows if any(item and item.interval for item in row.differences))
    if comparison.paired and any(map(_has_unpaired_interval, rows)):
        yield "~ not a mean over records: from both intervals, as if they were independent"
    if len(names) > 2:
        yield from ("", f"difference to {names[0]}, of measures with an interval")
        columns = [
            _TableColumn(names[position], [_format_difference(row, position) for row in rows])
            for position in range(1, len(names))
        ]
        yield from _format_blocks(_name_rows(rows), columns, width)


def _name_rows(rows: Sequence[Row]) -> _TableColumn:
    arrows = {None: "", True: " ↑", False: " ↓"}
    return _TableColumn("", [row.name + arrows[row.higher_is_better] for row in rows])


def _has_unpaired_interval(row: Row) -> bool:
    return any(item and item.interval and not item.paired for item in row.differences)


def _format_similarities(comparison: Comparison, names: Sequence[str], width: int) -> Iterator[str]:
    pairs = comparison.similarities
    if not pairs:
        yield "similarity: not computed, as the records are not the same, or too few"
        return
    common = f"share of common {pairs[0].k} nearest neighbors (cosine)"
    cka = "linear CKA (unbiased)"
    if len(pairs) <= _MAX_PAIR_LINES:
        heads = _TableColumn(
            "", [f"{names[pair.first]} and {names[pair.second]}" for pair in pairs]
        )
        shares = [
            _format_number(pair.common) + _format_interval(pair.interval, "") for pair in pairs
        ]
        values = [_format_number(pair.cka) for pair in pairs]
        yield from _format_blocks(
            heads, [_TableColumn(common, shares), _TableColumn(cka, values)], width
        )
        return
    yield common
    shares_of = {(pair.first, pair.second): pair.common for pair in pairs}
    yield from _format_matrix(names, shares_of, width)
    yield ""
    yield cka
    cka_of = {(pair.first, pair.second): pair.cka for pair in pairs}
    yield from _format_matrix(names, cka_of, width)


def _format_matrix(
    names: Sequence[str], values: dict[tuple[int, int], float], width: int
) -> Iterator[str]:
    def format_pair(first: int, second: int) -> str:
        if first == second:
            return ""
        return f"{values[min(first, second), max(first, second)]:.3f}"

    positions = range(len(names))
    columns = [
        _TableColumn(name, [format_pair(row, column) for row in positions])
        for column, name in enumerate(names)
    ]
    yield from _format_blocks(_TableColumn("", list(names)), columns, width)


def _format_verdicts(comparison: Comparison, names: Sequence[str]) -> Iterator[str]:
    """Count the measures where each column is clearly best, and where it beats raw pixels."""
    rows = [row for row in comparison.rows if row.higher_is_better is not None]
    if not rows:
        yield "no verdict: without labels, no measure says which one is better"
        return
    wins = Counter(names[row.best] for row in rows if row.best is not None)
    undecided = len(rows) - wins.total()
    counts = [f"{name} in {count}" for name, count in wins.most_common()]
    counts += [f"none of them in {undecided}"] if undecided else []
    yield f"clear best, by {len(rows)} measures: {', '.join(counts)}"
    with_pixels = [row for row in rows if row.pixels is not None]
    if with_pixels:
        counts = [
            f"{name} in {sum(_beats_pixels(row, position) for row in with_pixels)}"
            for position, name in enumerate(names)
        ]
        yield (
            f"clearly better than raw pixels, by {len(with_pixels)} measures: {', '.join(counts)}"
        )


def _beats_pixels(row: Row, position: int) -> bool:
    measure = row.measures[position]
    if measure is None or row.pixels is None:
        return False
    return compare_measures(measure, row.pixels, same_records=True) > 0


def _format_blocks(
    head: _TableColumn, columns: Sequence[_TableColumn], width: int
) -> Iterator[str]:
    """Yield a table in blocks of as many columns as fit; each block repeats the head column."""
    block: list[_TableColumn] = []
    room = width - head.width
    for column in columns:
        if block and room < column.width + len(GAP):
            yield from _format_block([head, *block])
            yield ""
            block, room = [], width - head.width
        block.append(column)
        room -= column.width + len(GAP)
    yield from _format_block([head, *block])


def _format_block(columns: Sequence[_TableColumn]) -> Iterator[str]:
    rows = zip(*([column.head, *column.cells] for column in columns), strict=True)
    yield from align(list(rows), numeric=True)


def _format_value(row: Row, position: int) -> str:
    return _format_cell(row.measures[position], _BEST if row.best == position else " ")


def _format_cell(measure: Measure | None, mark: str = " ") -> str:
    return ("-" if measure is None else _format_number(measure.value)) + mark


def _format_difference(row: Row, position: int) -> str:
    difference = row.differences[position]
    if difference is None:
        return "-"
    mark = " " if difference.paired or difference.interval is None else "~"
    value = _format_number(difference.value, "+")
    return f"{value}{_format_interval(difference.interval)}{mark}"


def _format_interval(interval: Interval | None, sign: str = "+") -> str:
    if interval is None:
        return ""
    low, high = (_format_number(bound, sign) for bound in interval)
    return f" [{low}, {high}]"


def _format_number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign},.0f}"
