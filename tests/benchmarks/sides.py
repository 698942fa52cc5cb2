# SPDX-License-Identifier: Apache-2.0
"""The command lines of the sides that are compared."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from processes import HERE

MODELS = {"models:mobilenet": 96, "models:resnet50": 224, "models:tiny": 32}  # their image sizes


def ray_embed(
    source: Path | str,
    out: Path,
    model: str = "models:mobilenet",
    options: Sequence[str] = (),
    command: str = "run",
) -> list[str]:
    """`ray-embed run` of a folder or `module:callable`."""
    line = [sys.executable, "-m", "ray_embed", command, "--source", f"valid={source}"]
    line += ["--model", model, "--out", str(out)]
    if (size := MODELS.get(model)) is not None:
        line += ["--image-size", f"{size},{size}"]
    return [*line, *options]


def script(name: str, *arguments: object) -> list[str]:
    """One of the scripts in this folder."""
    return [sys.executable, str(HERE / name), *(str(argument) for argument in arguments)]


def command(side: str, folder: Path, out: Path, options: Sequence[str] = ()) -> list[str]:
    """The command of a side, by its name; `options` are for ray-embed."""
    match side:
        case "loop":
            return script("section1_loop.py", folder, out)
        case "ray-embed":
            return ray_embed(folder, out, options=options)
        case "ray-data":
            return script("ray_data_job.py", folder, out)
        case "daft":
            return script("daft_job.py", folder, out)
    raise ValueError(side)


def turns(sides: Sequence[str], number: int) -> list[str]:
    """The order of the sides in a round: each begins in its turn."""
    first = number % len(sides)
    return [*sides[first:], *sides[:first]]
