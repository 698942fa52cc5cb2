# SPDX-License-Identifier: Apache-2.0
"""Draws how time and memory grow with the number of images."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from processes import Measured


def draw(path: Path, measured: Mapping[int, Sequence[Measured]]) -> None:
    """Write a PNG: seconds and peak memory of each side; lines are medians, dots all rounds.

    Args:
        path: of the PNG.
        measured: by the number of images, the processes of all sides and rounds.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    seconds, memory = figure.subplots(1, 2)
    for name in dict.fromkeys(m.name for rounds in measured.values() for m in rounds):
        _line(seconds, name, measured, lambda m: m.seconds)
        _line(memory, name, measured, lambda m: m.peak_pss_mb or m.peak_rss_mb)
    seconds.set_ylabel("seconds, whole process")
    memory.set_ylabel("peak memory of all processes, PSS, MB")
    for axes in (seconds, memory):
        axes.set_xlabel("images")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def _line(axes, name, measured, value) -> None:  # type: ignore[no-untyped-def]
    points = {
        images: [value(m) for m in rounds if m.name == name]
        for images, rounds in sorted(measured.items())
        if any(m.name == name for m in rounds)
    }
    medians = [statistics.median(values) for values in points.values()]
    (line,) = axes.plot(list(points), medians, label=name)
    for images, values in points.items():
        axes.plot([images] * len(values), values, ".", color=line.get_color())
