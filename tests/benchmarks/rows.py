# SPDX-License-Identifier: Apache-2.0
"""The rows of the benchmarks' table: what, target, measured, met or not.

Every benchmark prints, as its last line, `{"rows": [{"what": …, "target": ">= 2 x", "measured":
2.3, "unit": "x", "met": true}, …]}`; a row without a target has `"target": null, "met": null`.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_COMPARE = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Row:
    """One figure; `target` is a comparison, a number and the unit, as in `>= 2 x`."""

    what: str
    target: str | None
    measured: float | None
    unit: str
    met: bool | None


def row(what: str, target: str | None, measured: float | None, unit: str = "x") -> Row:
    """Make a row, and say whether the target is met.

    Args:
        what: in a few words.
        target: such as `>= 2.0`; None where there is none.
        measured: None where it could not be had: then the target is not met.
        unit: of both.
    """
    if target is None:
        return Row(what, None, measured, unit, None)
    comparison, number = target.split()
    met = measured is not None and _COMPARE[comparison](measured, float(number))
    return Row(what, f"{target} {unit}", measured, unit, met)


def ratio(over: float | None, under: float | None) -> float | None:
    """Divide, where both are known."""
    return over / under if over is not None and under else None


def last_line(rows: Sequence[Row]) -> str:
    """Give the line of JSON that ends what a benchmark prints."""
    return json.dumps({"rows": [asdict(row) for row in rows]})


def from_last_line(printed: str) -> list[Row]:
    """Read the rows that a benchmark printed.

    Raises:
        ValueError: the last line is none of ours.
    """
    lines = printed.strip().splitlines()
    try:
        return [Row(**row) for row in json.loads(lines[-1])["rows"]]
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"no rows in the last line: {lines[-1:]}") from error


def table(rows: Sequence[Row]) -> str:
    """Draw the table as text."""
    cells = [("what", "target", "measured", "")]
    for each in rows:
        measured = "-" if each.measured is None else f"{_shown(each.measured)} {each.unit}"
        met = {None: "", True: "met", False: "NOT MET"}[each.met]
        cells.append((each.what, each.target or "-", measured, met))
    wide = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = [
        f"{what:<{wide[0]}}  {target:>{wide[1]}}  {measured:>{wide[2]}}  {met}".rstrip()
        for what, target, measured, met in cells
    ]
    return "\n".join([lines[0], "-" * (sum(wide) + 6), *lines[1:]])


def _shown(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
