# SPDX-License-Identifier: Apache-2.0
"""Saved views of the projector: maps that its page shows without computing them.

What the page makes of them is in TensorBoard's vz-projector.ts (`loadState`) and
vz-projector-projections-panel.ts (`restoreUIFromBookmark`): a view takes all earlier coordinates
of the points away, so each has those of all maps.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed.core.arrays import Array, Matrix, as_column, as_matrix
from ray_embed.projector import checkpoint
from ray_embed.storage import layout, manifest, part_files
from ray_embed.storage.filesystem import Folder

# The page's own t-SNE takes no more points.
MAPPED = 10_000
# So many the page offers as axes.
COMPONENTS = 10
_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
# Opening a t-SNE view starts the page's own iterations from it. Axes are scaled to the picture, so
# that coordinates may be this large; then its forces are nothing, and the points stay.
_FAR_OUT = 1e6
# A column of more distinct texts is not offered for colouring.
_COLORED = 50


def keep(folder: Folder, column: str, index: Array, maps: Mapping[str, Matrix]) -> None:
    """Keep maps in the run folder, where they outlast a new projector.

    Args:
        folder: the run folder.
        column: the features that they are of.
        index: (n,) int64, the records.
        maps: by name, `pca`, `tsne` or `umap`, (n, k) float32 each.
    """
    fingerprint = (manifest.read_run(folder) or {})["fingerprint"]
    columns = {name: as_column(points.astype(np.float32)) for name, points in maps.items()}
    table = pa.table({"index": index, **columns})
    table = table.replace_schema_metadata({"ray_embed.fingerprint": fingerprint})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    folder.write(_kept(column), sink.getvalue())


def _kept(column: str) -> str:
    return f"{layout.MAPS}/{column}.parquet"


@dataclass(frozen=True)
class Views:
    """Saved views: their names, and the files of the projector that make them, its config last."""

    names: tuple[str, ...]
    files: dict[str, bytes]


def saved(folder: Folder, read: Callable[[str], bytes]) -> Views:
    """Make the views of the tensors that the page shows first; none where there is nothing to show.

    PCA where ``pca/`` or kept maps have the points shown, t-SNE and UMAP where kept maps are of
    exactly these points.

    Args:
        folder: the run folder.
        read: gives a file of the projector, which may not be in its place yet.
    """
    run = manifest.read_run(folder) or {}
    config = read(layout.PROJECTOR_CONFIG).decode()
    shown = checkpoint.metadata_of(config)
    paths: dict[str, str] = {}
    names: dict[str, None] = {}
    files: dict[str, bytes] = {}
    for output in run["encoder"]["outputs"]:
        column = output["column"]
        own = [name for name in _variables(column) if name in shown and name not in paths]
        if not own:
            continue
        labels, index = _lines(read(shown[own[0]]))
        maps = _maps(folder, run["fingerprint"], column, index)
        if not maps:
            continue
        file = "bookmarks" + column.removeprefix("feature") + ".json"
        files[file] = states(maps, output["dimension"], labels).encode()
        paths |= dict.fromkeys(own, file)
        names |= {_NAMES[name]: None for name in maps}
    if paths:
        files[layout.PROJECTOR_CONFIG] = checkpoint.with_bookmarks(config, paths).encode()
    return Views(tuple(names), files)


def _variables(column: str) -> list[str]:
    """Name the tensors that may show the points of a feature column: these, or their components."""
    variable, components = checkpoint.variable_of(column), layout.pca_column(column)
    return [variable, checkpoint.sampled(variable), components, f"sample_{components}"]


def _lines(content: bytes) -> tuple[list[bytes], Array]:
    """Give the label and the index of each point, from its metadata."""
    cells = [line.split(b"\t", 4) for line in content.split(b"\n")[1:] if line]
    return [each[0] for each in cells], np.array([int(each[3]) for each in cells], np.int64)


def _maps(folder: Folder, fingerprint: str, column: str, index: Array) -> dict[str, Matrix]:
    if folder.exists(_kept(column)):
        table: pa.Table = folder.read_with(_kept(column), pq.read_table)
        owner = (table.schema.metadata or {}).get(b"ray_embed.fingerprint", b"").decode()
        if owner == fingerprint and np.array_equal(table["index"].to_numpy(), index):
            return {name: as_matrix(table[name]) for name in _NAMES if name in table.column_names}
    return _principal(folder, layout.pca_column(column), index)


def _principal(folder: Folder, column: str, index: Array) -> dict[str, Matrix]:
    """Read the exact coordinates of points, where `reduce` has computed them."""
    found = np.empty((len(index), 0), np.float32)
    order = np.argsort(index)
    wanted = index[order]

    def read(number: int) -> tuple[Array, Matrix]:
        part = part_files.read_part(folder, layout.PCA, number, ["index", column])
        return part["index"].to_numpy(), as_matrix(part[column])[:, :COMPONENTS]

    for own, values in part_files.map_parts(
        folder, read, part_files.list_part_numbers(folder, layout.PCA)
    ):
        if not len(own):
            continue
        if not found.shape[1]:
            found = np.full((len(index), values.shape[1]), np.nan, np.float32)
        places = np.searchsorted(wanted, own)
        places[places == len(wanted)] = 0
        there = wanted[places] == own
        found[order[places[there]]] = values[there]
    return {"pca": found} if found.size and not np.isnan(found).any() else {}


def states(maps: Mapping[str, Matrix], dimension: int, labels: list[bytes]) -> str:
    """Give the views as the page's JSON.

    Args:
        maps: by name, `pca` (n, k) and maybe `tsne` and `umap` (n, 3), float32.
        dimension: of the tensor.
        labels: (n,) what the page shows as the label.
    """
    axes = [f"{name}-{axis}" for name in maps for axis in range(maps[name].shape[1])]
    line = "{" + ",".join(f'"{axis}":%.6g' for axis in axes) + "}"
    far = [points * (_FAR_OUT if name == "tsne" else 1) for name, points in maps.items()]
    rows = np.concatenate(far, axis=1).tolist()
    points = "[" + ",\n".join(line % tuple(row) for row in rows) + "]"
    colored = _is_colored(labels)
    views = []
    for name in maps:
        view = json.dumps(_state(name, maps, (len(rows), dimension), colored))
        views.append(f'{view[:-1]}, "projections": {points}}}')
    return "[" + ",\n".join(views) + "]\n"


def _state(
    name: str, maps: Mapping[str, Matrix], shape: tuple[int, int], colored: bool
) -> dict[str, Any]:
    """Give a view without its points: as the page writes one, its controls as they start."""
    texts = {f"custom{side}Text": "" for side in ("XLeft", "XRight", "YUp", "YDown")}
    patterns = {f"custom{side}Regex": False for side in ("XLeft", "XRight", "YUp", "YDown")}
    return {
        "label": _NAMES[name],
        "isSelected": False,
        "selectedProjection": name,
        "dataSetDimensions": shape,
        "tSNEIteration": 0,
        "tSNEPerplexity": 30,
        "tSNELearningRate": 1,
        "tSNEis3d": True,
        "umapIs3d": True,
        "umapNeighbors": 15,
        "umapMinDist": 0.1,
        "pcaComponentDimensions": list(range(min(3, maps["pca"].shape[1]))),
        "customSelectedSearchByMetadataOption": "label",
        **texts,
        **patterns,
        "selectedPoints": [],
        "cameraDef": None,
        "selectedColorOptionName": "label" if colored else "No color map",
        "forceCategoricalColoring": False,
        "selectedLabelOption": "label",
    }


def _is_colored(labels: list[bytes]) -> bool:
    """Whether the page offers to colour by these labels: few, or all numbers."""
    distinct = set(labels)
    if len(distinct) <= _COLORED:
        return True
    try:
        return all(np.isfinite(float(label)) for label in distinct)
    except ValueError:
        return False
