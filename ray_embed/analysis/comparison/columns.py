# SPDX-License-Identifier: Apache-2.0
"""The columns of a comparison: runs, or layers of runs, each with a unique name."""

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


@dataclass(frozen=True, kw_only=True)
class Column:
    """The features of one layer of one run.

    They are stored in the column `column` of the run's parts, as `dimension` numbers per record,
    pooled by `pool`.
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


def list_columns(runs: Sequence[str], layer: str | None = None) -> tuple[Column, ...]:
    """Return the columns of a comparison: one for each layer of each run.

    Args:
        runs: run folders, paths or URIs.
        layer: the only layer to take from each run. If None, all layers are taken.

    Raises:
        InputError: a run or the layer does not exist, shards are missing, or there is nothing to
            compare with.
        DamagedError: a part belongs to no planned shard.
    """
    columns = []
    for name, uri in zip(name_runs(runs), runs, strict=True):
        run = open_run(uri)
        run.require_finished()
        outputs = run.outputs if layer is None else (run.output_of(layer),)
        for output in outputs:
            columns.append(
                Column(
                    name=f"{name}:{output.layer}" if len(outputs) > 1 else name,
                    run=uri,
                    layer=output.layer,
                    column=output.column,
                    dimension=output.dimension,
                    pool=output.pool,
                )
            )
    if len(columns) < 2:
        names = ", ".join(redact_uri(uri) for uri in runs) or "no run"
        what = "with one layer" if layer is None else f"and one layer (--layer {layer})"
        raise InputError(
            f"{names}: nothing to compare with: this is one run {what}; name another RUN too"
        )
    return tuple(columns)


def name_runs(runs: Sequence[str]) -> list[str]:
    """Name runs after their folders, adding parent folders where needed to tell them apart."""
    paths = [_split_path(uri) for uri in runs]
    longest = max((len(path) for path in paths), default=0)
    names = [path[-1:] for path in paths]
    for length in range(2, longest + 1):
        count = Counter(names)
        names = [
            path[-length:] if count[name] > 1 else name
            for path, name in zip(paths, names, strict=True)
        ]
    return _number_equal_names(["/".join(name) for name in names])


def _split_path(uri: str) -> tuple[str, ...]:
    if not is_uri(uri):
        return Path(os.path.normpath(Path(uri).absolute())).parts[1:]
    return tuple(part for part in redact_uri(uri).split("/")[2:] if part)


def _number_equal_names(names: list[str]) -> list[str]:
    """Number names that are equal because a run was given twice."""
    counts: Counter[str] = Counter()
    numbered = []
    for name in names:
        counts[name] += 1
        numbered.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return numbered
