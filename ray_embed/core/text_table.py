# SPDX-License-Identifier: Apache-2.0
"""Tables of plain text."""

from collections.abc import Iterable, Iterator, Sequence

GAP = "  "


def align(
    rows: Iterable[Sequence[str]], *, numeric: bool = False, first_width: int = 0
) -> Iterator[str]:
    """Yield a line for each row, with the cells of a column below each other.

    Args:
        rows: cells, as many in each row.
        numeric: whether all columns but the first are aligned to the right.
        first_width: the least width of the first column.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if widths:
        widths[0] = max(widths[0], first_width)
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        for cell, width in zip(others, widths[1:], strict=True):
            cells.append(cell.rjust(width) if numeric else cell.ljust(width))
        yield GAP.join(cells).rstrip()
