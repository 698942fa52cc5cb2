# SPDX-License-Identifier: Apache-2.0
"""Images a second once warm, from when each batch or part was completed.

Both ends are left out, on every side alike: the first tenth of the images, in which caches fill and
functions are traced, and the last tenth, in which workers run out of work. What is under way at the
first moment taken is then about what is under way at the last one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq

FROM, TO = 0.1, 0.9


def once_warm(completions: Iterable[tuple[float, int]]) -> float | None:
    """Give the images a second between the completions that end the first and begin the last tenth.

    Args:
        completions: (seconds on any clock, images completed then), in any order.

    Returns:
        None where fewer than two completions remain.
    """
    ordered = sorted(completions)
    total = sum(images for _, images in ordered)
    taken: list[tuple[float, int]] = []
    done = 0
    for seconds, images in ordered:
        done += images
        if done >= FROM * total:
            taken.append((seconds, done))
        if done >= TO * total:
            break
    if len(taken) < 2 or taken[-1][0] <= taken[0][0]:
        return None
    (began, before), (ended, after) = taken[0], taken[-1]
    return (after - before) / (ended - began)


def of_run(folder: Path) -> float | None:
    """Give the images a second once warm of a finished run folder, by its parts' times."""
    return once_warm(
        (part.stat().st_mtime, _planned(part)) for part in (folder / "features").glob("*.parquet")
    )


def _planned(part: Path) -> int:
    """The number of records of a shard, rejects included."""
    return int(pq.read_metadata(part).metadata[b"ray_embed.planned"])
