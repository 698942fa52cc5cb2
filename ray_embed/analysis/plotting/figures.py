# SPDX-License-Identifier: Apache-2.0
"""Draw explained variance, the confusion of neighbors, and a sheet of misplaced images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_embed.analysis.plotting.palette import COLORS, shorten
from ray_embed.analysis.plotting.style import FAINT, INK, fit_text, new_figure
from ray_embed.core.arrays import Array
from ray_embed.images.thumbnails import Pixels

_MARKS = (0.5, 0.9, 0.99)
# Frames: color, width and style.
_RECORD_FRAME = (INK, 2.2, "-")
_SAME_CLASS_FRAME, _OTHER_CLASS_FRAME = (COLORS[0], 1.8, "-"), (COLORS[2], 1.8, (0, (3, 1.2)))
# Inches: a picture with its margin, a row with its labels, the text before it.
_CELL, _ROW, _TEXT, _GAP, _EDGE = 0.95, 1.12, 1.75, 0.15, 0.35
# Font sizes in points, of the label below an image and of the text before a row.
_LABEL_SIZE, _TEXT_SIZE = 7.5, 8.0


def draw_variance(ratios: Array) -> Any:
    """Draw the share of the variance that the first components explain together.

    Args:
        ratios: (c,), the share of each component, the largest first.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    shares = np.cumsum(ratios)
    numbers = np.arange(1, len(shares) + 1)
    figure = new_figure(6, 4)
    panel = figure.subplots()
    panel.plot(numbers, shares, "o-", color=COLORS[0], lw=1.5, ms=3)
    for mark in _MARKS:
        # Rounding may leave the sum a little short.
        position = int(np.searchsorted(shares, mark - 1e-9))
        if position == len(shares):
            continue
        number, share = numbers[position], shares[position]
        panel.plot([numbers[0], number], [mark, mark], color=FAINT, lw=0.8, ls=":")
        panel.plot([number] * 2, [0, mark], color=FAINT, lw=0.8, ls=":")
        panel.plot(number, share, "o", color=INK, ms=5)
        left = position > 0.5 * len(shares) and len(shares) > 1
        panel.annotate(
            f"{mark:.0%}: {number}",
            (number, share),
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


def draw_confusion(shares: Array, names: Sequence[str], chosen: Array) -> Any:
    """Draw the classes of the neighbors of each class.

    Args:
        shares: (classes, classes). Each row adds up to 1.
        names: the names of all classes.
        chosen: the classes to draw. A last column holds the sum of the other classes.
    """
    drawn = shares[np.ix_(chosen, chosen)]
    columns = [shorten(names[code]) for code in chosen]
    if len(chosen) < len(names):
        drawn = np.column_stack([drawn, 1 - drawn.sum(axis=1)])
        columns.append(f"{len(names) - len(chosen)} others")
    side = 0.42 * len(chosen)
    figure = new_figure(max(4.8, 3.2 + 0.42 * len(columns)), max(3.4, 2.2 + side))
    panel = figure.subplots()
    # Most confusions are small: the square root makes them visible.
    image = panel.imshow(np.sqrt(drawn), cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for (row, column), share in np.ndenumerate(drawn):
        if share >= 0.01:
            color = "white" if share > 0.4 else INK
            text = f"{100 * share:.0f}"
            panel.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)
    rows = [shorten(names[code]) for code in chosen]
    panel.set_yticks(range(len(rows)), rows)
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    panel.set_xticks(range(len(columns)), columns, **(turn if max(map(len, columns)) > 3 else {}))
    panel.set(xlabel="class of the neighbors", ylabel="class")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    if len(columns) > len(rows):
        panel.axvline(len(rows) - 0.5, color="white", lw=3)
    bar = figure.colorbar(image, ax=panel, shrink=0.7, aspect=25, pad=0.02)
    bar.set_ticks([0, 0.1**0.5, 0.5, 0.5**0.5, 1], labels=["0", "10", "25", "50", "100"])
    bar.set_label("% of the neighbors")
    bar.outline.set_visible(False)
    return figure


def draw_contact_sheet(
    records: Sequence[tuple[Pixels, str, Sequence[str]]],
    neighbors: Sequence[Sequence[tuple[Pixels, str, bool]]],
) -> Any:
    """Draw images, each beside its nearest neighbors.

    Args:
        records: for each row the image, its label, and the lines before it.
        neighbors: for each row, the image of each neighbor, the nearest first, its label, and
            whether that is the record's label.
    """
    from matplotlib.lines import Line2D

    columns = 1 + max(map(len, neighbors))
    width, height = _TEXT + columns * _CELL + _GAP, len(records) * _ROW
    figure = new_figure(width, height + _EDGE, layout=None)
    # All images share one panel, with coordinates in inches: hundreds of axes would take half a
    # minute.
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(0, width), ylim=(height + _EDGE, 0))
    panel.axis("off")
    for row, ((pixels, label, lines), near) in enumerate(zip(records, neighbors, strict=True)):
        top = row * _ROW
        text = "\n".join(fit_text(figure, line, _TEXT - 0.2, _TEXT_SIZE) for line in lines)
        panel.text(0.1, top + 0.5 * _CELL, text, fontsize=_TEXT_SIZE, va="center", linespacing=1.4)
        _draw_image(panel, (_TEXT, top), pixels, label, _RECORD_FRAME)
        for column, (other, other_label, is_same) in enumerate(near, start=1):
            corner = (_TEXT + _GAP + column * _CELL, top)
            frame = _SAME_CLASS_FRAME if is_same else _OTHER_CLASS_FRAME
            _draw_image(panel, corner, other, other_label, frame)
    legend = {
        "the record": _RECORD_FRAME,
        "neighbor of the same class": _SAME_CLASS_FRAME,
        "of another class": _OTHER_CLASS_FRAME,
    }
    figure.legend(
        handles=[
            Line2D([], [], color=color, lw=lw, ls=style, label=name)
            for name, (color, lw, style) in legend.items()
        ],
        loc="lower left",
        # Use figure coordinates, even if the saved area is larger than the figure.
        bbox_to_anchor=(0, 0, 1, 1),
        bbox_transform=figure.transFigure,
        ncols=3,
        frameon=False,
        handlelength=2.5,
        borderaxespad=0.2,
    )
    return figure


def _draw_image(
    panel: Any,
    corner: tuple[float, float],
    pixels: Pixels,
    label: str,
    frame: tuple[str, float, Any],
) -> None:
    """Draw an image at a corner, with a frame (color, width, style) and its label below."""
    from matplotlib.patches import Rectangle

    side = _CELL - 0.1
    left, top = corner
    height, width = pixels.shape[:2]
    x, y = (0.5 * side * (1 - length / max(height, width)) for length in (width, height))
    extent = (left + x, left + side - x, top + side - y, top + y)
    colors = np.broadcast_to(pixels, (height, width, 3))
    panel.imshow(colors, extent=extent, interpolation="nearest", aspect="auto")
    color, line, style = frame
    panel.add_patch(
        Rectangle((left, top), side, side, fill=False, ec=color, lw=line, ls=style, zorder=3)
    )
    options = {"ha": "center", "va": "top", "fontsize": _LABEL_SIZE, "color": color}
    name = fit_text(panel.figure, label, side, _LABEL_SIZE)
    panel.text(left + side / 2, top + side + 0.04, name, **options)
