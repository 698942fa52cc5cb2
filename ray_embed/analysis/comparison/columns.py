# SPDX-License-Identifier: Apache-2.0
"""What is set side by side: runs, or layers of runs, each under a name of its own."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ray_embed.core.uri import is_uri, redact_uri
from ray_embed.errors import InputError
from ray_embed.runs.reader import open_run
from ray_embed.storage.filesystem import Folder


@dataclass(frozen=True)
class Column:
    """The features of one layer of one run.

    They are the `column` of its parts, `dimension` numbers each, pooled by `pool`.
    """

    name: str
    run: str
    layer: str
    column: str
    dimension: int
    pool: str

    @cached_property
    def folder(self) -> Folder:
        """The run folder."""
        return Folder.open(self.run)


def columns(runs: Sequence[str], layer: str | None = None) -> tuple[Column, ...]:
    """Give the columns of a comparison: of each run one, or one a layer where none is named.

    Args:
        runs: run folders, paths or URIs.
        layer: take this layer of each run.

    Raises:
        InputError: no such run or layer, shards are missing, or there is nothing to compare with.
        DamagedError: a part is of no shard that was planned.
    """
    found = []
    for name, uri in zip(names(runs), runs, strict=True):
        run = open_run(uri)
        run.require_finished()
        outputs = run.outputs if layer is None else (run.output_of(layer),)
        for output in outputs:
            label = f"{name}:{output.layer}" if len(outputs) > 1 else name
            found.append(
                Column(label, uri, output.layer, output.column, output.dimension, output.pool)
            )
    if len(found) < 2:
        given = ", ".join(redact_uri(uri) for uri in runs) or "no run"
        what = "of one layer" if layer is None else f"of which --layer {layer} takes one layer"
        raise InputError(
            f"{given}: nothing to compare with, as it is one run {what}; name another RUN as well"
        )
    return tuple(found)


def names(runs: Sequence[str]) -> list[str]:
    """Name runs after their folders, with as many folders above as make them different."""
    paths = [_path(uri) for uri in runs]
    longest = max((len(path) for path in paths), default=0)
    given = [path[-1:] for path in paths]
    for length in range(2, longest + 1):
        count = Counter(given)
        given = [
            path[-length:] if count[name] > 1 else name
            for path, name in zip(paths, given, strict=True)
        ]
    return _numbered(["/".join(name) for name in given])


def _path(uri: str) -> tuple[str, ...]:
    if not is_uri(uri):
        return Path(os.path.normpath(Path(uri).absolute())).parts[1:]
    return tuple(part for part in redact_uri(uri).split("/")[2:] if part)


def _numbered(given: list[str]) -> list[str]:
    """Number what is equal all the same: a run given twice."""
    passed: Counter[str] = Counter()
    found = []
    for name in given:
        passed[name] += 1
        found.append(name if passed[name] == 1 else f"{name} ({passed[name]})")
    return found
