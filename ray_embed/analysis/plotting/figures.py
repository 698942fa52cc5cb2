# SPDX-License-Identifier: Apache-2.0
"""Explained variance, the confusion of neighbours, and a sheet of misplaced pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_embed.analysis.plotting.palette import COLORS, short
from ray_embed.analysis.plotting.style import FAINT, INK, fitted, new_figure
from ray_embed.core.arrays import Array
from ray_embed.images.thumbnails import Pixels

_MARKS = (0.5, 0.9, 0.99)
# Frames: colour, width and style.
_OWN, _FOREIGN = (COLORS[0], 1.8, "-"), (COLORS[2], 1.8, (0, (3, 1.2)))
# Inches: a picture and what lies between two, a row with its labels, the text before it.
_CELL, _ROW, _SAID, _GAP, _EDGE = 0.95, 1.12, 1.75, 0.15, 0.35
# Points of the letters at a picture, and before a row.
_LABEL, _SAYING = 7.5, 8.0


def variance(ratios: Array) -> Any:
    """Draw the share of the variance that the first components explain together.

    Args:
        ratios: (c,) the share of each component, the largest first.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    shares = np.cumsum(ratios)
    numbers = np.arange(1, len(shares) + 1)
    figure = new_figure(6, 4)
    panel = figure.subplots()
    panel.plot(numbers, shares, "o-", color=COLORS[0], lw=1.5, ms=3)
    for mark in _MARKS:
        # Rounding may leave the sum a little short.
        at = int(np.searchsorted(shares, mark - 1e-9))
        if at == len(shares):
            continue
        panel.plot([numbers[0], numbers[at]], [mark, mark], color=FAINT, lw=0.8, ls=":")
        panel.plot([numbers[at]] * 2, [0, mark], color=FAINT, lw=0.8, ls=":")
        panel.plot(numbers[at], shares[at], "o", color=INK, ms=5)
        left = at > 0.5 * len(shares) and len(shares) > 1
        panel.annotate(
            f"{mark:.0%}: {numbers[at]}",
            (numbers[at], shares[at]),
            xytext=(-6 if left else 6, 5 if left else -11),
            textcoords="offset points",
            ha="right" if left else "left",
            fontweight="bold",
        )
    if len(shares) > 30:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_minor_locator(NullLocator())
    else:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.set(xlabel="principal components", ylabel="variance explained", ylim=(0, 1.06))
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def confusion(shares: Array, names: Sequence[str], chosen: Array) -> Any:
    """Draw whose neighbours are of which class.

    Args:
        shares: (classes, classes), each row adding up to 1.
        names: of all classes.
        chosen: the classes to show; what the others have is one column at the end.
    """
    shown = shares[np.ix_(chosen, chosen)]
    columns = [short(names[code]) for code in chosen]
    if len(chosen) < len(names):
        shown = np.column_stack([shown, 1 - shown.sum(axis=1)])
        columns.append(f"{len(names) - len(chosen)} others")
    side = 0.42 * len(chosen)
    figure = new_figure(max(4.8, 3.2 + 0.42 * len(columns)), max(3.4, 2.2 + side))
    panel = figure.subplots()
    # By the root, for what is confused is mostly little.
    image = panel.imshow(np.sqrt(shown), cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for (row, column), share in np.ndenumerate(shown):
        if share >= 0.01:
            color = "white" if share > 0.4 else INK
            said = f"{100 * share:.0f}"
            panel.text(column, row, said, ha="center", va="center", fontsize=7.5, color=color)
    rows = [short(names[code]) for code in chosen]
    panel.set_yticks(range(len(rows)), rows)
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    panel.set_xticks(range(len(columns)), columns, **(turn if max(map(len, columns)) > 3 else {}))
    panel.set(xlabel="class of the neighbours", ylabel="class")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    if len(columns) > len(rows):
        panel.axvline(len(rows) - 0.5, color="white", lw=3)
    bar = figure.colorbar(image, ax=panel, shrink=0.7, aspect=25, pad=0.02)
    bar.set_ticks([0, 0.1**0.5, 0.5, 0.5**0.5, 1], labels=["0", "10", "25", "50", "100"])
    bar.set_label("% of the neighbours")
    bar.outline.set_visible(False)
    return figure


def contact_sheet(
    records: Sequence[tuple[Pixels, str, Sequence[str]]],
    neighbours: Sequence[Sequence[tuple[Pixels, str, bool]]],
) -> Any:
    """Draw pictures, each beside its nearest neighbours.

    Args:
        records: for each row the picture, its label, and the lines that are written before it.
        neighbours: for each row the pictures of the neighbours, the nearest first, their labels,
            and whether that is the record's own label.
    """
    from matplotlib.lines import Line2D

    columns = 1 + max(map(len, neighbours))
    width, height = _SAID + columns * _CELL + _GAP, len(records) * _ROW
    figure = new_figure(width, height + _EDGE, layout=None)
    # One picture for all, its coordinates in inches: hundreds of axes would take half a minute.
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(0, width), ylim=(height + _EDGE, 0))
    panel.axis("off")
    for at, ((pixels, label, said), near) in enumerate(zip(records, neighbours, strict=True)):
        top = at * _ROW
        lines = "\n".join(fitted(figure, line, _SAID - 0.2, _SAYING) for line in said)
        panel.text(0.1, top + 0.5 * _CELL, lines, fontsize=_SAYING, va="center", linespacing=1.4)
        _show(panel, (_SAID, top), pixels, label, (INK, 2.2, "-"))
        for place, (other, its_label, own) in enumerate(near, start=1):
            corner = (_SAID + _GAP + place * _CELL, top)
            _show(panel, corner, other, its_label, _OWN if own else _FOREIGN)
    legend = (((INK, 2.2, "-"), "the record"), (_OWN, "neighbour of the same class"))
    figure.legend(
        handles=[
            Line2D([], [], color=color, lw=lw, ls=style, label=name)
            for (color, lw, style), name in (*legend, (_FOREIGN, "of another class"))
        ],
        loc="lower left",
        # Of the figure, also where more than it is saved.
        bbox_to_anchor=(0, 0, 1, 1),
        bbox_transform=figure.transFigure,
        ncols=3,
        frameon=False,
        handlelength=2.5,
        borderaxespad=0.2,
    )
    return figure


def _show(
    panel: Any,
    corner: tuple[float, float],
    pixels: Pixels,
    label: str,
    frame: tuple[str, float, Any],
) -> None:
    """Draw a picture with a frame (colour, width, style), its label below, at a corner."""
    from matplotlib.patches import Rectangle

    side = _CELL - 0.1
    left, top = corner
    height, width = pixels.shape[:2]
    x, y = (0.5 * side * (1 - length / max(height, width)) for length in (width, height))
    extent = (left + x, left + side - x, top + side - y, top + y)
    shown = np.broadcast_to(pixels, (height, width, 3))
    panel.imshow(shown, extent=extent, interpolation="nearest", aspect="auto")
    color, line, style = frame
    panel.add_patch(
        Rectangle((left, top), side, side, fill=False, ec=color, lw=line, ls=style, zorder=3)
    )
    said = {"ha": "center", "va": "top", "fontsize": _LABEL, "color": color}
    name = fitted(panel.figure, label, side, _LABEL)
    panel.text(left + side / 2, top + side + 0.04, name, **said)
