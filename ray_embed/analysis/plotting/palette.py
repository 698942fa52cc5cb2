# SPDX-License-Identifier: Apache-2.0
"""Choose colors and markers for classes that everyone can tell apart."""

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.analysis.plotting.fonts import Lettering, clean
from ray_embed.core.arrays import Array
from ray_embed.projector import metadata

# Petroff 2021, "Accessible Color Sequences for Data Visualization", arXiv:2107.02270: ten colors,
# as distinct to color-blind readers as the eight of Okabe and Ito. Grayish colors are last.
COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59"),
    *("#e76300", "#b9ac70", "#92dadd", "#717581", "#94a4a2"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
# With more classes than colors, only this many are colored, in colors that never look gray.
MAX_COLORED_CLASSES = 7
REST = "#d8dadd"
SEQUENTIAL = "viridis"

_LONGEST = 24


@dataclass(frozen=True)
class Classes:
    """The classes of some records.

    `codes` (n,) int64 holds the class of each record, or -1 if it has none. `names` holds the names
    of the classes, the largest first, and `counts` their sizes. `drawn` holds the names as they are
    drawn.
    """

    codes: Array
    names: tuple[str, ...]
    counts: tuple[int, ...]
    drawn: tuple[str, ...]

    @property
    def colored(self) -> int:
        """How many classes, starting with the largest, have their own color."""
        return len(self.names) if len(self.names) <= len(COLORS) else MAX_COLORED_CLASSES


def group_classes(labels: Array) -> Classes:
    """Group object labels (n,) into classes. A label of None is no class.

    Classes of the same size are sorted by name. The names are the same as on the projector's page.
    """
    texts = np.array([metadata.cell(label) for label in labels], object)
    present = np.array([label is not None for label in labels], bool)
    unique, inverse, counts = np.unique(
        texts[present].astype(str), return_inverse=True, return_counts=True
    )
    order = np.lexsort((np.arange(len(unique)), -counts))
    ranks = np.empty(len(unique), np.int64)
    ranks[order] = np.arange(len(unique))
    codes = np.full(len(labels), -1, np.int64)
    codes[present] = ranks[inverse]
    names = tuple(map(str, unique[order]))
    return Classes(codes, names, tuple(map(int, counts[order])), names)


def apply_lettering(classes: Classes, lettering: Lettering) -> Classes:
    """Return the classes with the names to draw, as far as the fonts have their letters."""
    return replace(classes, drawn=tuple(map(lettering.name, classes.names)))


def sort_by_name(codes: Array, names: tuple[str, ...]) -> Array:
    """Sort classes by name, comparing numbers within names by value."""

    def make_key(code: int) -> tuple[Any, ...]:
        parts = re.split(r"(\d+)", names[code])
        # Every second part is a number.
        return tuple(int(part) if place % 2 else part for place, part in enumerate(parts))

    return np.array(sorted(codes, key=make_key), np.int64)


def is_scale(label_type: pa.DataType) -> bool:
    """Whether labels are numbers on a scale, and not classes."""
    return bool(pa.types.is_floating(label_type))


def shorten(name: str, longest: int = _LONGEST) -> str:
    """Shorten a name to at most `longest` columns on one line: its start, an ellipsis and its end.

    East Asian letters take two columns; combining marks take none.
    """
    name = clean(name)
    if sum(map(_count_columns, name)) <= longest:
        return name
    end = longest // 3
    last = _take_columns(name[::-1], end)[::-1]
    while last and unicodedata.category(last[0]).startswith("M"):
        # A mark belongs to the letter before it.
        last = last[1:]
    return f"{_take_columns(name, longest - end - 1)}…{last}"


def _take_columns(name: str, longest: int) -> str:
    taken = 0
    for position, letter in enumerate(name):
        taken += _count_columns(letter)
        if taken > longest:
            return name[:position]
    return name


def _count_columns(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
