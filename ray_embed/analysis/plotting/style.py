# SPDX-License-Identifier: Apache-2.0
"""Style figures, write text around them, and save them."""

import io
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray_embed.analysis.plotting.fonts import Lettering, quiet_matplotlib
from ray_embed.analysis.plotting.palette import shorten
from ray_embed.errors import InputError
from ray_embed.storage import layout
from ray_embed.storage.filesystem import Folder

# From this many dots on, they become one image in the SVG, which would be slow to open otherwise.
RASTERIZED_FROM = 1_000
INK, FAINT = "#222222", "#8a8f96"
# Inches around a picture's title and the table below it, and their font sizes in points.
_MARGIN, _TITLE, _TABLE = 0.1, 11.0, 8.0
_LONGEST_ENTRY = 160
_SHORTEST_LINE, _LONGEST_LINE = 5, 60
# The share of a line to fill: letters are measured and saved at different resolutions, and hinting
# can make them wider when saved.
_FILL = 0.98

_STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
    # Make the SVG of the same figure the same bytes.
    "svg.hashsalt": "ray_embed",
    # Keep a dollar sign in a name from starting a formula.
    "text.parse_math": False,
}


def check_installed() -> None:
    """Import matplotlib.

    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("drawing needs matplotlib: pip install 'ray_embed[plots]'") from error


@contextmanager
def apply_style(lettering: Lettering) -> Iterator[None]:
    """Draw in this style within the context, and restore the caller's settings afterwards."""
    import matplotlib as mpl

    with quiet_matplotlib(), mpl.rc_context({**_STYLE, "font.family": list(lettering.families)}):
        yield


def new_figure(width: float, height: float, layout: Any = "constrained") -> Any:
    """Make a figure (size in inches) that needs no display and is not registered with pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def add_title(figure: Any, title: str) -> None:
    """Write a title above a figure, on as many lines as it needs."""
    width, height = figure.get_size_inches()
    lines = wrap_text(figure, title, width - 2 * _MARGIN, _TITLE)
    _write(figure, _MARGIN, height + _MARGIN / 2, lines, "bottom", _TITLE)


def add_table(figure: Any, heading: str, entries: Sequence[str]) -> None:
    """Write entries below a figure, in as many columns as fit."""
    if not entries:
        return
    width = figure.get_size_inches()[0] - 2 * _MARGIN
    entries = [shorten(entry, _LONGEST_ENTRY) for entry in entries]
    widest = max(measure_width(figure, entry, _TABLE) for entry in entries) + 2 * _MARGIN
    columns = max(1, min(len(entries), int(width / widest)))
    below = _write(
        figure, _MARGIN, -_MARGIN, wrap_text(figure, heading, width, _TABLE), "top", _TABLE
    )
    for column in range(columns):
        rows = -(-len(entries) // columns)
        listed = entries[column * rows : (column + 1) * rows]
        lines = [line for entry in listed for line in wrap_text(figure, entry, width, _TABLE)]
        _write(figure, _MARGIN + column * width / columns, below, lines, "top", _TABLE)


def _write(figure: Any, x: float, y: float, lines: Sequence[str], align: str, size: float) -> float:
    """Write lines at a position in inches, even outside the figure, and return their lower edge."""
    width, height = figure.get_size_inches()
    # matplotlib moves coordinates of the figure when it saves more than the figure.
    text = figure.text(x / width, y / height, "\n".join(lines), va=align, fontsize=size)
    return float(text.get_window_extent(figure.canvas.get_renderer()).y0) / float(figure.dpi)


def measure_width(figure: Any, text: str, size: float) -> float:
    """Return the width of a line, in inches."""
    from matplotlib.font_manager import FontProperties

    renderer = figure.canvas.get_renderer()
    properties = FontProperties(size=size)
    return float(renderer.get_text_width_height_descent(text, properties, False)[0] / figure.dpi)


def fit_text(figure: Any, text: str, width: float, size: float) -> str:
    """Shorten a line to fit a width in inches."""
    lengths = range(_SHORTEST_LINE, _LONGEST_LINE + 1)
    return _cut_to_fit(figure, text, shorten, lengths, width, size)


def _cut_to_fit(
    figure: Any,
    text: str,
    cut: Callable[[str, int], str],
    lengths: Sequence[int],
    width: float,
    size: float,
) -> str:
    """Cut a text to the last of some ascending lengths at which it fits, or else to the first."""
    fitting = bisect_right(
        lengths, width, key=lambda length: measure_width(figure, cut(text, length), size)
    )
    return cut(text, lengths[max(0, fitting - 1)])


def wrap_text(figure: Any, text: str, width: float, size: float) -> list[str]:
    """Break a text into lines that fit a width in inches, at spaces if possible."""
    width *= _FILL
    lines = [""]
    for word in re.findall(r"\s*\S+", text):
        if measure_width(figure, lines[-1] + word, size) <= width:
            lines[-1] += word
            continue
        rest = word.lstrip() if lines[-1] else word
        lines += [""] if lines[-1] else []
        while rest:
            lines[-1] = _cut_to_fit(figure, rest, _cut, range(1, len(rest) + 1), width, size)
            rest = rest[len(lines[-1]) :]
            lines += [""] if rest else []
    return lines


def _cut(text: str, length: int) -> str:
    return text[:length]


def render(figure: Any, kind: str) -> bytes:
    """Render a figure as "png" or "svg", enlarged to include anything beyond its edges."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    everything = figure.get_tightbbox()
    whole, padded = figure.bbox_inches, everything.padded(_MARGIN)
    sides = [
        padded.x0 if everything.x0 < whole.x0 else whole.x0,
        padded.y0 if everything.y0 < whole.y0 else whole.y0,
        padded.x1 if everything.x1 > whole.x1 else whole.x1,
        padded.y1 if everything.y1 > whole.y1 else whole.y1,
    ]
    stream = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None}
    box = Bbox.from_extents(*sides)
    figure.savefig(stream, format=kind, metadata=metadata, bbox_inches=box)
    return stream.getvalue()


def save_figure(folder: Folder, name: str, figure: Any) -> list[str]:
    """Write a figure into the run folder as PNG and as SVG; return their names."""
    written = []
    for kind in ("png", "svg"):
        written.append(f"{layout.PLOTS}/{name}.{kind}")
        folder.write(written[-1], render(figure, kind))
    return written
