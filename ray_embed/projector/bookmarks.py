# SPDX-License-Identifier: Apache-2.0
"""Projector bookmarks: saved views that TensorBoard shows without recomputing them.

TensorBoard loads them in vz-projector.ts (`loadState`) and vz-projector-projections-panel.ts
(`restoreUIFromBookmark`). Loading a view discards all previous coordinates, so every view contains
the coordinates of all maps.
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

# TensorBoard's t-SNE is limited to this many points.
MAX_TSNE_POINTS = 10_000
# TensorBoard offers this many PCA components as axes.
MAX_PCA_AXES = 10
_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
# When a t-SNE view is opened, TensorBoard continues to iterate from it. Scaling the coordinates by
# this factor makes its forces negligible, so the points stay in place. The axes are rescaled for
# display.
_TSNE_SCALE = 1e6
# TensorBoard does not color by columns with more distinct text values.
_MAX_COLORS = 50


def save_maps(run: RunReader, column: str, index: Array, maps: Mapping[str, Matrix]) -> None:
    """Save maps in the run folder, but not in `projector/`, which `reduce` replaces.

    Args:
        run: the run.
        column: the column of the features.
        index: the record indices, (n,) int64.
        maps: the coordinates, (n, k) float32, by name: `pca`, `tsne` or `umap`.
    """
    columns = {name: as_column(points.astype(np.float32)) for name, points in maps.items()}
    table = pa.table({"index": index, **columns})
    table = table.replace_schema_metadata({"ray_embed.fingerprint": run.fingerprint})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    run.folder.write(_format_maps_path(column), sink.getvalue())


def _format_maps_path(column: str) -> str:
    return f"{layout.MAPS}/{column}.parquet"


@dataclass(frozen=True)
class Bookmarks:
    """The names of the saved views, and the projector files to write, the configuration last."""

    names: tuple[str, ...]
    files: dict[str, bytes]


def make_bookmarks(run: RunReader, read: Callable[[str], bytes]) -> Bookmarks:
    """Make the bookmarks of the first tensor of each feature column.

    PCA is included if ``pca/`` or the saved maps contain the displayed points; t-SNE and UMAP are
    included if the saved maps contain exactly these points.

    Args:
        run: the run.
        read: function that returns the contents of a projector file, which may still be in a
            temporary folder.
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
    return Bookmarks(tuple(names), files)


def _list_variables(column: str) -> list[str]:
    """List the names of the tensors that can belong to a feature column."""
    variable, components = checkpoint.get_variable_name(column), layout.pca_column(column)
    return [variable, checkpoint.sampled(variable), components, f"sample_{components}"]


def _parse_metadata(content: bytes) -> tuple[list[bytes], Array]:
    """Return the labels and record indices of the points."""
    rows = [line.split(b"\t", 4) for line in content.split(b"\n")[1:] if line]
    return [row[0] for row in rows], np.array([int(row[3]) for row in rows], np.int64)


def _read_maps(folder: Folder, fingerprint: str, column: str, index: Array) -> dict[str, Matrix]:
    """Return the saved maps of exactly these points, else their PCA coordinates, if any."""
    if folder.exists(_format_maps_path(column)):
        table: pa.Table = folder.read_with(_format_maps_path(column), pq.read_table)
        owner = (table.schema.metadata or {}).get(b"ray_embed.fingerprint", b"").decode()
        if owner == fingerprint and np.array_equal(table["index"].to_numpy(), index):
            return {name: as_matrix(table[name]) for name in _NAMES if name in table.column_names}
    return _read_components(folder, layout.pca_column(column), index)


def _read_components(folder: Folder, column: str, index: Array) -> dict[str, Matrix]:
    """Read the PCA coordinates of the points, or return nothing unless all points have them."""
    coordinates = np.empty((len(index), 0), np.float32)
    order = np.argsort(index)
    sorted_index = index[order]

    def read(number: int) -> tuple[Array, Matrix]:
        part = part_files.read_part(folder, layout.PCA, number, ["index", column])
        return part["index"].to_numpy(), as_matrix(part[column])[:, :MAX_PCA_AXES]

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
    """Format the views as TensorBoard's JSON.

    Args:
        maps: float32 coordinates by name: `pca` (n, k) and optionally `tsne` and `umap` (n, 3).
        dimension: the dimension of the tensor.
        labels: the displayed labels, (n,).
    """
    axes = [f"{name}-{axis}" for name in maps for axis in range(maps[name].shape[1])]
    line = "{" + ",".join(f'"{axis}":%.6g' for axis in axes) + "}"
    scaled = [points * (_TSNE_SCALE if name == "tsne" else 1) for name, points in maps.items()]
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
    """Return a view without its points, with TensorBoard's default settings."""
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
    """Return whether TensorBoard can color by these labels: few distinct, or all numbers."""
    distinct = set(labels)
    if len(distinct) <= _MAX_COLORS:
        return True
    try:
        return all(np.isfinite(float(label)) for label in distinct)
    except ValueError:
        return False
