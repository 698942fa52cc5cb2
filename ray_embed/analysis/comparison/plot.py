# SPDX-License-Identifier: Apache-2.0
"""Measures as curves: over the checkpoints of a training, or the layers of an encoder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ray_embed.analysis.comparison.compare import Comparison, Row
from ray_embed.analysis.plotting import style
from ray_embed.analysis.plotting.fonts import choose_lettering
from ray_embed.analysis.plotting.palette import short
from ray_embed.errors import InputError

FORMATS = (".png", ".svg")
# A picture of all of them would be read by nobody.
_MAIN = (
    "knn_5_cosine",
    "knn_20_cosine",
    "linear_probe",
    "silhouette_cosine",
    "kmeans_nmi",
    "knn_r2_5_cosine",
    "knn_r2_20_cosine",
    "rankme",
)
_ACROSS = 3
_PANEL = (4.0, 3.0)  # inches
_COLOUR = "#0072B2"
_LONGEST_NAME = 32
_TABLE = "names with letters that no font on this machine has:"


def check_target(file: str) -> None:
    """Refuse what cannot be drawn, before the work.

    Raises:
        InputError: another format, no such folder, or matplotlib is not installed.
    """
    path = Path(file)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {file}: its name must end in {' or '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot {file}: there is no folder {path.parent}; make it first")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("--plot needs matplotlib: pip install 'ray_embed[plots]'") from error


def draw(comparison: Comparison, file: str, say: Callable[[str], None]) -> None:
    """Draw a panel for each main measure, with the columns from left to right as given.

    Args:
        comparison: what is drawn.
        file: a .png or .svg file.
        say: takes the lines for the user.

    Raises:
        InputError: there is no measure.
    """
    rows = _drawn(comparison.rows)
    if not rows:
        raise InputError(f"--plot {file}: there is no measure to draw of so few records")
    across = min(_ACROSS, len(rows))
    down = -(-len(rows) // across)
    names = [column.name for column in comparison.columns]
    lettering = choose_lettering(names)
    drawn = [short(lettering.name(name), _LONGEST_NAME) for name in names]
    with style.styled(lettering):
        figure = style.new_figure(_PANEL[0] * across, _PANEL[1] * down)
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel, row in zip(panels, rows, strict=False):
            _draw_row(panel, row, drawn)
        for panel in panels[len(rows) :]:
            panel.set_axis_off()
        style.add_title(figure, _title(comparison))
        style.add_table(figure, _TABLE, lettering.table(names))
        content = style.rendered(figure, Path(file).suffix[1:].lower())
    Path(file).write_bytes(content)
    if advice := lettering.advice():
        say(advice)


def _title(comparison: Comparison) -> str:
    counts = sorted(set(comparison.judged))
    judged = " to ".join(f"{count:,}" for count in (counts[0], counts[-1])[: len(counts)])
    same = "the same " if comparison.paired else ""
    return f"judged on {same}{judged} records; bars: 95 % interval of each value by itself"


def _drawn(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.name in _MAIN] or list(rows)


def _draw_row(panel: Any, row: Row, names: Sequence[str]) -> None:
    known = [(at, one) for at, one in enumerate(row.measures) if one and np.isfinite(one.value)]
    places = [at for at, _ in known]
    values = [one.value for _, one in known]
    bounds = [one.interval or (one.value, one.value) for _, one in known]
    panel.plot(places, values, color=_COLOUR, marker="o", markersize=4)
    for place, (low, high) in zip(places, bounds, strict=True):
        panel.plot([place, place], [low, high], color=_COLOUR, linewidth=1)
    better = {True: " (higher is better)", False: " (lower is better)", None: " (no verdict)"}
    panel.set_title(row.name + better[row.higher_is_better], fontsize=10)
    turned = {"rotation": 45, "ha": "right"} if max(map(len, names)) * len(names) > 40 else {}
    panel.set_xticks(range(len(names)), names, fontsize=8, **turned)
    panel.grid(axis="y", alpha=0.3)
