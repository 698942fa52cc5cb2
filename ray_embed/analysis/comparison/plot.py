# SPDX-License-Identifier: Apache-2.0
"""Draw measures as curves over the checkpoints of a training run or the layers of an encoder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ray_embed.analysis.comparison.compare import Comparison, Row
from ray_embed.analysis.plotting import style
from ray_embed.analysis.plotting.fonts import choose_lettering
from ray_embed.analysis.plotting.palette import shorten
from ray_embed.errors import InputError

FORMATS = (".png", ".svg")
# If the comparison has any of these, only they are drawn: all would be too many panels.
_MAIN_MEASURES = (
    "knn_5_cosine",
    "knn_20_cosine",
    "linear_probe",
    "silhouette_cosine",
    "kmeans_nmi",
    "knn_r2_5_cosine",
    "knn_r2_20_cosine",
    "knn_lrap_5_cosine",
    "knn_lrap_20_cosine",
    "knn_common_20_cosine",
    "rankme",
)
_PANELS_PER_ROW = 3
_PANEL_INCHES = (4.0, 3.0)  # inches
_COLOR = "#0072B2"
_LONGEST_NAME = 32
_TABLE_HEADING = "names with letters that no font on this machine has:"


def check_target(file: str) -> None:
    """Check, before any work is done, that a comparison can be drawn to a file.

    Raises:
        InputError: the format is not supported, the folder does not exist, or matplotlib is
            missing.
    """
    path = Path(file)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {file}: its name must end in {' or '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot {file}: there is no folder {path.parent}; make it first")
    style.check_installed()


def draw_comparison(comparison: Comparison, file: str, say: Callable[[str], None]) -> None:
    """Draw a panel for each main measure, with the columns from left to right as given.

    Args:
        comparison: the comparison.
        file: a .png or .svg file.
        say: prints a line for the user.

    Raises:
        InputError: there is no measure.
    """
    rows = _choose_rows(comparison.rows)
    if not rows:
        raise InputError(f"--plot {file}: there is no measure to draw; there are too few records")
    across = min(_PANELS_PER_ROW, len(rows))
    down = -(-len(rows) // across)
    names = [column.name for column in comparison.columns]
    lettering = choose_lettering(names)
    drawn = [shorten(lettering.name(name), _LONGEST_NAME) for name in names]
    with style.apply_style(lettering):
        figure = style.new_figure(_PANEL_INCHES[0] * across, _PANEL_INCHES[1] * down)
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel, row in zip(panels, rows, strict=False):
            _draw_row(panel, row, drawn)
        for panel in panels[len(rows) :]:
            panel.set_axis_off()
        style.add_title(figure, _make_title(comparison))
        style.add_table(figure, _TABLE_HEADING, lettering.table(names))
        content = style.render(figure, Path(file).suffix[1:].lower())
    Path(file).write_bytes(content)
    if advice := lettering.advice():
        say(advice)


def _make_title(comparison: Comparison) -> str:
    counts = sorted(set(comparison.evaluated))
    numbers = " to ".join(f"{count:,}" for count in (counts[0], counts[-1])[: len(counts)])
    same = "the same " if comparison.paired else ""
    return f"evaluated on {same}{numbers} records; bars: 95 % interval of each value by itself"


def _choose_rows(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.name in _MAIN_MEASURES] or list(rows)


def _draw_row(panel: Any, row: Row, names: Sequence[str]) -> None:
    known = {
        position: measure
        for position, measure in enumerate(row.measures)
        if measure and np.isfinite(measure.value)
    }
    values = [measure.value for measure in known.values()]
    panel.plot(list(known), values, color=_COLOR, marker="o", markersize=4)
    for position, measure in known.items():
        bounds = measure.interval or (measure.value, measure.value)
        panel.plot([position, position], bounds, color=_COLOR, linewidth=1)
    better = {True: " (higher is better)", False: " (lower is better)", None: " (no verdict)"}
    panel.set_title(row.name + better[row.higher_is_better], fontsize=10)
    turned = {"rotation": 45, "ha": "right"} if max(map(len, names)) * len(names) > 40 else {}
    panel.set_xticks(range(len(names)), names, fontsize=8, **turned)
    panel.grid(axis="y", alpha=0.3)
