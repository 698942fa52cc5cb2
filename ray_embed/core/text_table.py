# SPDX-License-Identifier: Apache-2.0
"""Format plain-text tables."""

from collections.abc import Iterable, Iterator, Sequence

GAP = "  "


def align(
    rows: Iterable[Sequence[str]], *, numeric: bool = False, first_width: int = 0
) -> Iterator[str]:
    """Yield a line for each row, with the cells of each column aligned.

    Args:
        rows: the cells of each row, the same number in each.
        numeric: whether to right-align all columns but the first.
        first_width: the minimum width of the first column.
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
