# SPDX-License-Identifier: Apache-2.0
"""Draw maps side by side, colored by class or by value, each with its quality below it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_embed.analysis.plotting.palette import (
    COLORS,
    MARKERS,
    REST,
    SEQUENTIAL,
    Classes,
    shorten,
    sort_by_name,
)
from ray_embed.analysis.plotting.projections import Map
from ray_embed.analysis.plotting.style import INK, RASTERIZED_FROM, new_figure
from ray_embed.core.arrays import Array

NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
_PANEL, _LEGEND, _BAR = 4.6, 2.3, 0.9
# Classes are drawn in turns, so that the last one does not cover the others.
_DRAWING_ROUNDS = 6
_LISTED = 12
# matplotlib cannot put ticks at larger numbers.
_LARGEST = 1e300
# The most characters of a name that is drawn beside its class, and of one drawn on top of it.
_MAX_NAME_LENGTH, _MAX_ON_TOP_LENGTH = 14, 3


def draw_by_class(maps: Sequence[Map], classes: Classes, none: str, *, named: bool = True) -> Any:
    """Draw maps colored by class, with a legend.

    Args:
        maps: the maps, all of the same n records.
        classes: the classes of these records.
        none: the name of records without a class.
        named: whether to also write names at the medians of the classes.
    """
    figure, panels = _make_panels(maps, _LEGEND)
    size = _choose_dot_size(len(classes.codes))
    for panel, drawn in zip(panels, maps, strict=True):
        _scatter(panel, drawn.points, classes, size)
    legend = _add_legend(figure, classes, none)
    # The positions of the names depend on the positions of the panels.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # Use figure coordinates, even if the saved area is larger than the figure.
    legend.set_bbox_to_anchor((0, 0, 1, 1), figure.transFigure)
    if not named:
        return figure
    for panel, drawn in zip(panels, maps, strict=True):
        _name_classes(panel, drawn.points, classes)
    return figure


def draw_by_scale(maps: Sequence[Map], values: Array, name: str) -> Any:
    """Draw maps colored by numbers (n,) float64, which are NaN for records without a number."""
    figure, panels = _make_panels(maps, _BAR)
    size = _choose_dot_size(len(values))
    known = np.isfinite(values)
    largest = np.abs(values[known]).max(initial=0)
    if largest > _LARGEST:
        # Otherwise the ticks of the bar would overflow.
        exponent = int(np.log10(largest))
        values, name = values / 10.0**exponent, f"{name} / 1e{exponent}"
    # Otherwise, a few outliers would give all other records the same color.
    low, high = np.percentile(values[known], [1, 99]) if known.any() else (0.0, 1.0)
    lowest, highest = (values[known].min(), values[known].max()) if known.any() else (low, high)
    order = np.random.default_rng(0).permutation(np.flatnonzero(known))
    dots = None
    for panel, drawn in zip(panels, maps, strict=True):
        options = {"s": size, "linewidths": 0, "rasterized": _is_rasterized(len(values))}
        if not known.all():
            rest = drawn.points[~known]
            panel.scatter(rest[:, 0], rest[:, 1], c=REST, marker="X", **options, label="(none)")
        points = drawn.points[order]
        dots = panel.scatter(
            *(points[:, 0], points[:, 1]),
            **options,
            c=values[order],
            cmap=SEQUENTIAL,
            vmin=low,
            vmax=high,
            alpha=0.85,
        )
    ends = {(True, True): "both", (True, False): "min", (False, True): "max"}
    extend = ends.get((bool(lowest < low), bool(highest > high)), "neither")
    bar = figure.colorbar(dots, ax=panels, extend=extend, fraction=0.025, pad=0.01, aspect=30)
    bar.set_label(name)
    bar.solids.set_alpha(1)
    bar.outline.set_visible(False)
    if not known.all():
        below = {"loc": "upper right", "bbox_to_anchor": (1, 0), "borderpad": 0.2}
        panels[-1].legend(**below, frameon=False, markerscale=1.5, handletextpad=0.2)
    return figure


def _make_panels(maps: Sequence[Map], side: float) -> tuple[Any, list[Any]]:
    figure = new_figure(_PANEL * len(maps) + side, _PANEL + 0.6)
    # Panels as wide as possible would leave no room for the text below.
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.08)
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for panel, drawn in zip(axes, maps, strict=True):
        panel.set_title(NAMES[drawn.name], loc="left")
        panel.set(xticks=[], yticks=[])
        panel.set_box_aspect(1)
        panel.margins(0.06)
        panel.set_xlabel(describe_quality(drawn), fontsize=8.5, loc="left")
    return figure, list(axes)


def describe_quality(drawn: Map) -> str:
    """Describe how far a map can be trusted."""
    if drawn.trustworthiness is None:
        return "too few records to measure the map"
    sample = "" if drawn.evaluated == len(drawn.points) else f"\non {drawn.evaluated:,} records"
    return (
        f"this map: trustworthiness {drawn.trustworthiness:.3f} · "
        f"continuity {drawn.continuity:.3f}{sample}"
    )


def _is_rasterized(points: int) -> bool:
    return points >= RASTERIZED_FROM


def _choose_dot_size(points: int) -> float:
    return float(np.clip(9000 / max(points, 1), 7, 40))


def _scatter(panel: Any, points: Array, classes: Classes, size: float) -> None:
    options = {"linewidths": 0, "rasterized": _is_rasterized(len(points))}
    rest = (classes.codes < 0) | (classes.codes >= classes.colored)
    panel.scatter(*points[rest, :2].T, s=0.6 * size, c=REST, marker="o", zorder=1, **options)
    turns = np.random.default_rng(0).integers(0, _DRAWING_ROUNDS, len(points))
    for turn in range(_DRAWING_ROUNDS):
        for code in range(classes.colored):
            chosen = points[(classes.codes == code) & (turns == turn), :2]
            panel.scatter(
                *chosen.T,
                s=size,
                c=COLORS[code],
                marker=MARKERS[code],
                alpha=0.85,
                zorder=2 + turn,
                **options,
            )


def _name_classes(panel: Any, points: Array, classes: Classes) -> None:
    """Write names at the medians of the colored classes, without overlaps."""
    from matplotlib import patheffects

    figure = panel.figure
    renderer = figure.canvas.get_renderer()
    taken: list[Any] = []
    frame = panel.get_window_extent(renderer)
    for code in range(classes.colored):
        middle = np.median(points[classes.codes == code, :2], axis=0)
        text = panel.annotate(
            shorten(classes.drawn[code], _MAX_NAME_LENGTH),
            middle,
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            fontweight="bold",
            color=INK,
            zorder=20,
            path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white", alpha=0.9)],
        )
        # A long name would hide a small class.
        beside = len(classes.drawn[code]) > _MAX_ON_TOP_LENGTH
        for x, y in _list_offsets()[1:] if beside else _list_offsets():
            text.set_position((x, y))
            box = text.get_window_extent(renderer).expanded(1.02, 1.05)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        if np.hypot(x, y) > 16:
            panel.annotate(
                "",
                middle,
                xytext=(x, y),
                textcoords="offset points",
                zorder=19,
                arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6, "shrinkA": 5},
            )


def _list_offsets() -> list[tuple[float, float]]:
    """List positions of a name, in points from the median of its class, the nearest first."""
    around = np.linspace(0, 2 * np.pi, 16, endpoint=False) + np.pi / 2
    return [
        (0.0, 0.0),
        *(
            (1.6 * radius * np.cos(angle), radius * np.sin(angle))
            for radius in range(10, 120, 6)
            for angle in around
        ),
    ]


def _add_legend(figure: Any, classes: Classes, none: str) -> Any:
    from matplotlib.lines import Line2D

    def make_entry(color: str, marker: str, name: str, count: int) -> Any:
        label = f"{name} ({count:,})"
        return Line2D([], [], color=color, marker=marker, ls="", ms=6, mew=0, label=label)

    entries = [
        make_entry(COLORS[code], MARKERS[code], shorten(classes.drawn[code]), classes.counts[code])
        for code in sort_by_name(np.arange(classes.colored), classes.names)
    ]
    others = classes.counts[classes.colored :]
    if others:
        entries.append(make_entry(REST, "o", f"{len(others)} other classes", sum(others)))
    unlabeled = int((classes.codes < 0).sum())
    if unlabeled:
        entries.append(make_entry(REST, "o", none, unlabeled))
    return figure.legend(
        handles=entries[:_LISTED],
        loc="outside right upper",
        frameon=False,
        handletextpad=0.1,
        labelspacing=0.7,
        borderaxespad=2,
    )
