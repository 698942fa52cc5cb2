# SPDX-License-Identifier: Apache-2.0
"""A comparison as text for a terminal: a block of columns below the other where it is narrow."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_embed.analysis.comparison.columns import Column
from ray_embed.analysis.comparison.compare import Comparison, Row
from ray_embed.analysis.evaluation.differences import verdict
from ray_embed.analysis.evaluation.intervals import Interval
from ray_embed.analysis.evaluation.measure import Measure

_GAP = "  "
_BEST = "*"
# Names longer than this stand once in the list above, and their numbers in the tables.
_LONG = 24
# As many pairs have a line each, more of them a matrix.
_FEW_PAIRS = 6


@dataclass(frozen=True)
class _Text:
    """A column of a table: its head, and a cell for each row."""

    head: str
    cells: list[str]

    @property
    def width(self) -> int:
        return max(map(len, [self.head, *self.cells]))


def lines(comparison: Comparison, width: int) -> Iterator[str]:
    """Give the lines of a comparison, of at most `width` characters where its names allow that."""
    short = _short_names(comparison)
    yield from _what(comparison, short, width)
    yield from _measures(comparison, short, width)
    yield ""
    yield from _likeness(comparison, short, width)
    yield ""
    for line in _verdicts(comparison, short):
        yield from textwrap.wrap(line, width, break_long_words=False)


def _verdicts(comparison: Comparison, short: Sequence[str]) -> Iterator[str]:
    """Count the measures that each is the clear best in, and those in which it beats raw pixels."""
    judged = [row for row in comparison.rows if row.higher_is_better is not None]
    if not judged:
        yield "no verdict: without labels nothing says which one is better"
        return
    wins = Counter(short[row.best] for row in judged if row.best is not None)
    open_ones = len(judged) - wins.total()
    counts = [f"{name} in {count}" for name, count in wins.most_common()]
    counts += [f"none of them in {open_ones}"] if open_ones else []
    yield f"clear best, by {len(judged)} measures: {', '.join(counts)}"
    beside = [row for row in judged if row.pixels is not None]
    if beside:
        beating = [
            f"{name} in {sum(_beats_pixels(row, at) for row in beside)}"
            for at, name in enumerate(short)
        ]
        yield f"clearly better than raw pixels, by {len(beside)} measures: {', '.join(beating)}"


def _beats_pixels(row: Row, at: int) -> bool:
    measure = row.measures[at]
    return bool(measure and row.pixels and verdict(measure, row.pixels, same=True) > 0)


def _measures(comparison: Comparison, short: Sequence[str], width: int) -> Iterator[str]:
    rows = comparison.rows
    values = [_Text(name, [_value(row, at) for row in rows]) for at, name in enumerate(short)]
    if any(row.pixels for row in rows):
        values.append(_Text("raw pixels", [_cell(row.pixels) for row in rows]))
    if len(short) == 2:
        # One table is enough for both.
        apart = _Text(f"{short[1]} - {short[0]}", [_difference(row, 1) for row in rows])
        yield from _blocks(_head(rows), [*values, apart], width)
    else:
        yield from _blocks(_head(rows), values, width)
    yield "↑ higher is better, ↓ lower is better, others are no verdict"
    yield f"{_BEST} better than the second best beyond the interval; without one no clear best"
    kind = "on the same records, paired" if comparison.paired else "of other records, unpaired"
    yield f"[ ] 95 % interval of the difference, {kind}"
    sure = [row for row in rows if any(one and one.interval for one in row.differences)]
    if comparison.paired and any(map(_is_loose, sure)):
        yield "~ not a mean over records: from the intervals of both, as if nothing tied them"
    if len(short) > 2:
        yield from ("", f"difference to {short[0]}, of measures with an interval")
        differences = [
            _Text(short[at], [_difference(row, at) for row in sure]) for at in range(1, len(short))
        ]
        yield from _blocks(_head(sure), differences, width)


def _head(rows: Sequence[Row]) -> _Text:
    return _Text("", [_named(row) for row in rows])


def _is_loose(row: Row) -> bool:
    """Whether some differences have an interval that is not of pairs."""
    return any(one and one.interval and not one.paired for one in row.differences)


def _short_names(comparison: Comparison) -> list[str]:
    names = [column.name for column in comparison.columns]
    if max(map(len, names)) <= _LONG:
        return names
    return [f"#{number}" for number in range(1, len(names) + 1)]


def _what(comparison: Comparison, short: Sequence[str], width: int) -> Iterator[str]:
    """Say what is compared."""
    names = [column.name for column in comparison.columns]
    numbers = short if list(short) != names else [""] * len(names)
    texts = [
        _Text("", list(numbers)),
        _Text("", names),
        _Text("", [_layer(column) for column in comparison.columns]),
        _Text("", [f"{column.dimension:,} dimensions" for column in comparison.columns]),
        _Text("", [
            f"{judged:,} of {count:,} records"
            for judged, count in zip(comparison.judged, comparison.counts, strict=True)
        ]),
    ]  # fmt: skip
    for cells in zip(
        *[[cell.ljust(text.width) for cell in text.cells] for text in texts], strict=True
    ):
        yield _GAP.join(cell for cell in cells if cell).rstrip()
    for note in comparison.notes:
        yield from textwrap.wrap(f"note: {note}", width, break_long_words=False)
    yield ""


def _layer(column: Column) -> str:
    pooled = "" if column.pool == "none" else f" ({column.pool})"
    return f"layer {column.layer}{pooled}"


def _blocks(head: _Text, texts: Sequence[_Text], width: int) -> Iterator[str]:
    """Give a table; each block has the head again, and as many columns as there is room for."""
    block: list[_Text] = []
    room = width - head.width
    for text in texts:
        if block and room < text.width + len(_GAP):
            yield from _table([head, *block])
            yield ""
            block, room = [], width - head.width
        block.append(text)
        room -= text.width + len(_GAP)
    yield from _table([head, *block])


def _table(texts: Sequence[_Text]) -> Iterator[str]:
    first, *others = texts
    for at in range(-1, len(first.cells)):
        cells = [text.head if at < 0 else text.cells[at] for text in others]
        right = [cell.rjust(text.width) for text, cell in zip(others, cells, strict=True)]
        left = first.head if at < 0 else first.cells[at]
        yield _GAP.join([left.ljust(first.width), *right]).rstrip()


def _named(row: Row) -> str:
    arrow = {None: "", True: " ↑", False: " ↓"}[row.higher_is_better]
    return row.name + arrow


def _value(row: Row, at: int) -> str:
    return _cell(row.measures[at], _BEST if row.best == at else " ")


def _cell(measure: Measure | None, mark: str = " ") -> str:
    return ("-" if measure is None else _number(measure.value)) + mark


def _difference(row: Row, at: int) -> str:
    found = row.differences[at]
    if found is None:
        return "-"
    loose = " " if found.paired or found.interval is None else "~"
    return f"{_number(found.value, '+')}{_interval(found.interval)}{loose}"


def _interval(interval: Interval | None, sign: str = "+") -> str:
    if interval is None:
        return ""
    low, high = (_number(bound, sign) for bound in interval)
    return f" [{low}, {high}]"


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign},.0f}"


def _likeness(comparison: Comparison, short: Sequence[str], width: int) -> Iterator[str]:
    alike = comparison.likeness
    if not alike:
        yield "how alike they are cannot be said, as the records are not the same, or too few"
        return
    common = f"share of common {alike[0].k} nearest neighbours (cosine)"
    cka = "linear CKA (unbiased)"
    if len(alike) <= _FEW_PAIRS:
        pairs = _Text("", [f"{short[one.first]} and {short[one.second]}" for one in alike])
        shares = [_number(one.common) + _interval(one.interval, "") for one in alike]
        yield from _blocks(
            pairs, [_Text(common, shares), _Text(cka, [_number(one.cka) for one in alike])], width
        )
        return
    yield common
    yield from _matrix(short, {(one.first, one.second): one.common for one in alike}, width)
    yield ""
    yield cka
    yield from _matrix(short, {(one.first, one.second): one.cka for one in alike}, width)


def _matrix(
    short: Sequence[str], values: dict[tuple[int, int], float], width: int
) -> Iterator[str]:
    def cell(a: int, b: int) -> str:
        return "" if a == b else f"{values[min(a, b), max(a, b)]:.3f}"

    every = range(len(short))
    texts = [_Text(name, [cell(row, at) for row in every]) for at, name in enumerate(short)]
    yield from _blocks(_Text("", list(short)), texts, width)
