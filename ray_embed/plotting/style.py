# SPDX-License-Identifier: Apache-2.0
"""How the pictures look, and how they are saved."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_embed.errors import InputError
from ray_embed.filesystem import Folder

FOLDER = "plots"
# From so many dots on they are one picture inside the SVG, which would be slow to open otherwise.
RASTERIZED_FROM = 1_000
INK, FAINT = "#222222", "#8a8f96"

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "sans-serif"],
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
    # The same picture gives the same bytes.
    "svg.hashsalt": "ray_embed",
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
def styled() -> Iterator[None]:
    """Draw in this style, and without a screen; what the caller has set stays as it is."""
    import warnings

    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A letter that no font has is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def new_figure(width: float, height: float, layout: Any = "constrained") -> Any:
    """Make a figure (inches) that draws itself without a screen, apart from pyplot's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save(folder: Folder, name: str, figure: Any) -> list[str]:
    """Write a figure into the run folder as PNG and as SVG; gives their names."""
    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, metadata=metadata)
        written.append(f"{FOLDER}/{name}.{kind}")
        folder.write(written[-1], stream.getvalue())
    return written
