# SPDX-License-Identifier: Apache-2.0
"""Saved views of the projector: maps that its page shows without computing them.

The page reads them in TensorBoard's vz-projector.ts (`loadState`) and
vz-projector-projections-panel.ts (`restoreUIFromBookmark`). A view removes all earlier coordinates
of the points, so every view holds those of all maps.
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
from ray_embed.runs.reader import RunReader
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

# The page's own t-SNE takes no more points.
MAPPED = 10_000
# The page offers so many components as axes.
COMPONENTS = 10
_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
# Opening a t-SNE view starts the page's own iterations from it. With coordinates as large as this,
# its forces are negligible and the points stay. The page scales the axes to the picture.
_TSNE_FACTOR = 1e6
# The page does not color by a column with more distinct texts.
_COLORED = 50


def save_maps(run: RunReader, column: str, index: Array, maps: Mapping[str, Matrix]) -> None:
    """Save maps in the run folder, outside the projector, which `reduce` replaces.

    Args:
        run: the run.
        column: the column of the features.
        index: (n,) int64, of the records.
        maps: by name, `pca`, `tsne` or `umap`, (n, k) float32 each.
    """
    columns = {name: as_column(points.astype(np.float32)) for name, points in maps.items()}
    table = pa.table({"index": index, **columns})
    table = table.replace_schema_metadata({"ray_embed.fingerprint": run.fingerprint})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    run.folder.write(_name_maps(column), sink.getvalue())


def _name_maps(column: str) -> str:
    return f"{layout.MAPS}/{column}.parquet"


@dataclass(frozen=True)
class Views:
    """Saved views: their names, and the files of the projector that hold them, the config last."""

    names: tuple[str, ...]
    files: dict[str, bytes]


def make_views(run: RunReader, read: Callable[[str], bytes]) -> Views:
    """Make the views of the tensors that the page shows first, if there are coordinates for them.

    There is a view of the PCA if ``pca/`` or the saved maps hold the points shown, and views of
    t-SNE and UMAP if the saved maps are of exactly these points.

    Args:
        run: the run.
        read: returns a file of the projector, which may not be in its place yet.
    """
    config = read(layout.PROJECTOR_CONFIG).decode()
    shown = checkpoint.metadata_of(config)
    paths: dict[str, str] = {}
    names: dict[str, None] = {}
    files: dict[str, bytes] = {}
    for output in run.outputs:
        column = output.column
        variables = [
            name for name in _list_variables(column) if name in shown and name not in paths
        ]
        if not variables:
            continue
        labels, index = _parse_metadata(read(shown[variables[0]]))
        maps = _read_maps(run.folder, run.fingerprint, column, index)
        if not maps:
            continue
        file = "bookmarks" + column.removeprefix("feature") + ".json"
        files[file] = format_views(maps, output.dimension, labels).encode()
        paths |= dict.fromkeys(variables, file)
        names |= {_NAMES[name]: None for name in maps}
    if paths:
        files[layout.PROJECTOR_CONFIG] = checkpoint.add_bookmarks(config, paths).encode()
    return Views(tuple(names), files)


def _list_variables(column: str) -> list[str]:
    """List the tensors that may show the points of a feature column, or their components."""
    variable, components = checkpoint.variable_of(column), layout.pca_column(column)
    return [variable, checkpoint.sampled(variable), components, f"sample_{components}"]


def _parse_metadata(content: bytes) -> tuple[list[bytes], Array]:
    """Return the label and the index of each point from its metadata."""
    rows = [line.split(b"\t", 4) for line in content.split(b"\n")[1:] if line]
    return [row[0] for row in rows], np.array([int(row[3]) for row in rows], np.int64)


def _read_maps(folder: Folder, fingerprint: str, column: str, index: Array) -> dict[str, Matrix]:
    """Read the saved maps of exactly these points; else their exact PCA, if there is one."""
    if folder.exists(_name_maps(column)):
        table: pa.Table = folder.read_with(_name_maps(column), pq.read_table)
        owner = (table.schema.metadata or {}).get(b"ray_embed.fingerprint", b"").decode()
        if owner == fingerprint and np.array_equal(table["index"].to_numpy(), index):
            return {name: as_matrix(table[name]) for name in _NAMES if name in table.column_names}
    return _read_components(folder, layout.pca_column(column), index)


def _read_components(folder: Folder, column: str, index: Array) -> dict[str, Matrix]:
    """Read the exact coordinates of points where `reduce` has computed them for all."""
    coordinates = np.empty((len(index), 0), np.float32)
    order = np.argsort(index)
    sorted_index = index[order]

    def read(number: int) -> tuple[Array, Matrix]:
        part = part_files.read_part(folder, layout.PCA, number, ["index", column])
        return part["index"].to_numpy(), as_matrix(part[column])[:, :COMPONENTS]

    for part_index, values in part_files.map_parts(
        folder, read, part_files.list_part_numbers(folder, layout.PCA)
    ):
        if not len(part_index):
            continue
        if not coordinates.shape[1]:
            coordinates = np.full((len(index), values.shape[1]), np.nan, np.float32)
        positions = np.searchsorted(sorted_index, part_index)
        positions[positions == len(sorted_index)] = 0
        is_wanted = sorted_index[positions] == part_index
        coordinates[order[positions[is_wanted]]] = values[is_wanted]
    is_complete = coordinates.size and not np.isnan(coordinates).any()
    return {"pca": coordinates} if is_complete else {}


def format_views(maps: Mapping[str, Matrix], dimension: int, labels: list[bytes]) -> str:
    """Format the views as the page's JSON.

    Args:
        maps: by name, `pca` (n, k) and maybe `tsne` and `umap` (n, 3), float32.
        dimension: of the tensor.
        labels: (n,) what the page shows as the label.
    """
    axes = [f"{name}-{axis}" for name in maps for axis in range(maps[name].shape[1])]
    line = "{" + ",".join(f'"{axis}":%.6g' for axis in axes) + "}"
    scaled = [points * (_TSNE_FACTOR if name == "tsne" else 1) for name, points in maps.items()]
    rows = np.concatenate(scaled, axis=1).tolist()
    points = "[" + ",\n".join(line % tuple(row) for row in rows) + "]"
    colored = _can_color_by(labels)
    views = []
    for name in maps:
        view = json.dumps(_describe_view(name, maps, (len(rows), dimension), colored))
        views.append(f'{view[:-1]}, "projections": {points}}}')
    return "[" + ",\n".join(views) + "]\n"


def _describe_view(
    name: str, maps: Mapping[str, Matrix], shape: tuple[int, int], colored: bool
) -> dict[str, Any]:
    """Return a view without its points, as the page writes it with its initial controls."""
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


def _can_color_by(labels: list[bytes]) -> bool:
    """Whether the page offers to color by these labels: few, or all numbers."""
    distinct = set(labels)
    if len(distinct) <= _COLORED:
        return True
    try:
        return all(np.isfinite(float(label)) for label in distinct)
    except ValueError:
        return False
