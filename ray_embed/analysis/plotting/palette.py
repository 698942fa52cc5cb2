# SPDX-License-Identifier: Apache-2.0
"""Which classes get a colour, and which: to be told apart with any eyes, by colour and marker."""

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.analysis.plotting.fonts import Lettering, clean
from ray_embed.core.arrays import Array
from ray_embed.projector import metadata

# Petroff 2021, "Accessible Color Sequences for Data Visualization", arXiv:2107.02270: ten colours,
# as far apart for colour-blind eyes as the eight of Okabe and Ito. What may look grey comes last.
COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59"),
    *("#e76300", "#b9ac70", "#92dadd", "#717581", "#94a4a2"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
# Where there are more classes than colours, so many are coloured: those that look grey to nobody.
COLORED = 7
REST = "#d8dadd"
SEQUENTIAL = "viridis"

_LONGEST = 24


@dataclass(frozen=True)
class Classes:
    """The classes of some records.

    `codes` (n,) int64 has the class of each record, -1 where it has none. `names` are the classes,
    the largest first, `counts` their sizes. `drawn` are the names as pictures have them.
    """

    codes: Array
    names: tuple[str, ...]
    counts: tuple[int, ...]
    drawn: tuple[str, ...]

    @property
    def colored(self) -> int:
        """How many of the classes, the largest, have a colour of their own."""
        return len(self.names) if len(self.names) <= len(COLORS) else COLORED


def classes_of(labels: Array) -> Classes:
    """Take labels (n,) of object for classes; None is no class.

    Of classes of one size the first by name comes first; names are those of the projector's page.
    """
    texts = np.array([metadata.cell(label) for label in labels], object)
    present = np.array([label is not None for label in labels], bool)
    found, inverse, counts = np.unique(
        texts[present].astype(str), return_inverse=True, return_counts=True
    )
    order = np.lexsort((np.arange(len(found)), -counts))
    places = np.empty(len(found), np.int64)
    places[order] = np.arange(len(found))
    codes = np.full(len(labels), -1, np.int64)
    codes[present] = places[inverse]
    names = tuple(map(str, found[order]))
    return Classes(codes, names, tuple(map(int, counts[order])), names)


def lettered(classes: Classes, lettering: Lettering) -> Classes:
    """Return classes whose names are drawn as the fonts allow."""
    return replace(classes, drawn=tuple(map(lettering.name, classes.names)))


def by_name(codes: Array, names: tuple[str, ...]) -> Array:
    """Sort classes by name, numbers as such."""

    def key(code: int) -> tuple[Any, ...]:
        parts = re.split(r"(\d+)", names[code])
        # Every second one is a number.
        return tuple(int(part) if at % 2 else part for at, part in enumerate(parts))

    return np.array(sorted(codes, key=key), np.int64)


def is_scale(label_type: pa.DataType) -> bool:
    """Whether labels are numbers on a scale, and no classes."""
    return bool(pa.types.is_floating(label_type))


def short(name: str, longest: int = _LONGEST) -> str:
    """Shorten a name to so many columns, in one line: its start, an ellipsis and its end.

    East Asian letters take two columns, combining marks none.
    """
    name = clean(name)
    if sum(map(_columns, name)) <= longest:
        return name
    end = longest // 3
    last = _first_columns(name[::-1], end)[::-1]
    while last and unicodedata.category(last[0]).startswith("M"):
        # A mark belongs to the letter before it.
        last = last[1:]
    return f"{_first_columns(name, longest - end - 1)}…{last}"


def _first_columns(name: str, longest: int) -> str:
    taken = 0
    for at, letter in enumerate(name):
        taken += _columns(letter)
        if taken > longest:
            return name[:at]
    return name


def _columns(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
