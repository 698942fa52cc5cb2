# SPDX-License-Identifier: Apache-2.0
"""Read the features and labels of a run. Needs neither TensorFlow nor Ray."""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ray_embed.analysis import neighbors
from ray_embed.core.arrays import as_matrix, as_objects
from ray_embed.core.uri import is_uri, join_uri, redact_uri
from ray_embed.errors import InputError
from ray_embed.projector import pca
from ray_embed.runs.reader import RunReader, open_run
from ray_embed.sources.label_lists import LABEL_LIST
from ray_embed.storage import layout, part_files

if TYPE_CHECKING:
    from ray_embed.analysis.evaluation.evaluate import Evaluation
    from ray_embed.analysis.evaluation.label_kind import LabelKind


@dataclass(frozen=True)
class Run:
    """A finished or partial run, with methods to read its results.

    Returned by :func:`ray_embed.load` and :func:`ray_embed.run`.
    """

    path: str

    @property
    def features_path(self) -> str:
        """The path of the Parquet files with keys, labels and features."""
        return join_uri(self.path, layout.FEATURES)

    @property
    def projector_path(self) -> str:
        """The path for ``tensorboard --logdir``. Written by `run` and `reduce`."""
        return join_uri(self.path, layout.PROJECTOR)

    @property
    def pca_path(self) -> str:
        """The path of the Parquet files with PCA coordinates. Written by `run` and `reduce`."""
        return join_uri(self.path, layout.PCA)

    @cached_property
    def rows(self) -> int:
        """The number of embedded records.

        Raises:
            DamagedError: a part is damaged.
            StorageError: a part cannot be read.
        """
        folder = self._reader.folder
        footers = part_files.map_parts(
            folder, partial(part_files.read_footer, folder), part_files.list_part_numbers(folder)
        )
        return sum(footer.rows for footer in footers)

    @cached_property
    def rejects(self) -> int:
        """The number of rejected records. The reasons are in ``rejects/``."""
        return sum(self.rejects_by_reason.values())

    @cached_property
    def rejects_by_reason(self) -> dict[str, int]:
        """The number of rejected records by reason, most common first."""
        return part_files.count_rejects(self._reader.folder)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the extracted layers, as accepted by `to_numpy`."""
        return self._reader.layers

    def to_numpy(
        self, layer: str | None = None
    ) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[Any]]]:
        """Return the features and labels of all embedded records, in order.

        Args:
            layer: the layer; None for the only one.

        Returns:
            The features, (N, D) float32, and the labels, (N,) object. Missing labels are None;
            labels that are lists are lists of str.

        Raises:
            InputError: the layer does not exist, or there are several layers and `layer` is None.
        """
        column = self._reader.column_of(layer)
        table = self._dataset.to_table(columns=["label", column])
        return as_matrix(table[column]), as_objects(table["label"].to_pylist())

    def to_pca(self, layer: str | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the first PCA coordinates of all embedded records, (N, k) float32, in order.

        k is at most 50. The PCA is fitted on all records. It is exact for up to 8,192 dimensions or
        4,096 records, and approximate otherwise; the residuals are stored in the metadata of
        ``pca.parquet``.

        Args:
            layer: the layer; None for the only one.

        Raises:
            InputError: the layer does not exist, there are several layers and `layer` is None, or
                there is no PCA.
        """
        column, folder = self._reader.column_of(layer), self._reader.folder
        pca.load(folder, column)
        parts = list(part_files.list_part_numbers(folder))
        if list(part_files.list_part_numbers(folder, layout.PCA)) != parts:
            name = redact_uri(self.path)
            raise InputError(f"{name}: the PCA is incomplete; run `ray-embed reduce {name}`")
        name = layout.pca_column(column)
        return as_matrix(self._read(layout.PCA).to_table(columns=[name])[name])

    def explained_variance(self, layer: str | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the fraction of the variance explained by each principal component, (c,), in
        descending order.

        For up to 8,192 dimensions, c is D; otherwise, c is N - 1 for up to 4,096 records and 50 for
        more.

        Args:
            layer: the layer; None for the only one.

        Raises:
            InputError: see `to_pca`.
        """
        return pca.load(self._reader.folder, self._reader.column_of(layer)).ratios

    def evaluate(
        self,
        layer: str | None = None,
        sample: int = 10_000,
        labels: "LabelKind | None" = None,
    ) -> "dict[str, Evaluation]":
        """Evaluate the features, with raw pixels as a baseline.

        Like `ray-embed evaluate`, but does not write any files.

        Args:
            layer: the layer; None for all.
            sample: the maximum number of records to evaluate, sampled with a fixed seed and
                stratified by split and label.
            labels: how to interpret numeric labels: as "classes" or as continuous "values". None
                means classes for integers and for whole-number floats with at most 50 distinct
                values, and values for other floats.

        Returns:
            The evaluation of each layer, by name.

        Raises:
            InputError: shards are missing, the layer does not exist, there are no records, features
                are not finite, or `labels` is "values" but the labels are not numeric.
            DamagedError: a part is damaged.
            StorageError: a part cannot be read.
        """
        from ray_embed.analysis.evaluation.evaluate import evaluate

        return evaluate(self._reader, layer, sample, labels=labels)

    def to_table(self) -> pa.Table:
        """Return all parts as one Arrow table, in order."""
        return self._dataset.to_table()

    def to_pandas(self) -> Any:
        """Return all parts as a pandas DataFrame; `feature` holds one array per row.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            return self.to_table().to_pandas()
        except ImportError as error:
            raise InputError("to_pandas needs pandas: pip install 'ray_embed[pandas]'") from error

    def to_tf(self, layer: str | None = None, batch_size: int = 1024) -> Any:
        """Return a ``tf.data.Dataset`` of batches: features (n, D) float32, and labels (n,).

        Parts are read lazily. Missing labels become -1, NaN, False or "". Labels that are lists are
        a ragged tensor (n, None) of strings, in which missing labels are empty rows.

        Args:
            layer: the layer; None for the only one.
            batch_size: the maximum number of rows per batch.
        """
        import tensorflow as tf

        column = self._reader.column_of(layer)
        schema = self._dataset.schema
        label = schema.field("label").type
        has_lists = label == LABEL_LIST
        missing, kind = {
            pa.int64(): (-1, tf.int64),
            pa.float64(): (float("nan"), tf.float64),
            pa.bool_(): (False, tf.bool),
        }.get(label, ([] if has_lists else "", tf.string))

        def batches() -> Any:
            columns = [column, "label"]
            for batch in self._dataset.to_batches(columns=columns, batch_size=batch_size):
                if batch.num_rows:
                    table = pa.Table.from_batches([batch])
                    values = table["label"].to_pylist()
                    labels = [missing if value is None else value for value in values]
                    if has_lists:
                        labels = tf.ragged.constant(labels, kind, ragged_rank=1)
                    yield as_matrix(table[column]), labels

        dimension = schema.field(column).type.list_size
        spec = tf.TensorSpec((None,), kind)
        if has_lists:
            spec = tf.RaggedTensorSpec((None, None), kind)
        return tf.data.Dataset.from_generator(
            batches, output_signature=(tf.TensorSpec((None, dimension), tf.float32), spec)
        )

    def neighbors(
        self,
        query: str | np.ndarray[Any, Any],
        k: int = 10,
        metric: str = "cosine",
        layer: str | None = None,
        split: str | None = None,
    ) -> pa.Table:
        """Find the nearest neighbors of a record or of feature vectors. Parts are read one at a
        time.

        The cosine distance is 1 - cos, in [0, 2]; it is 1 if a vector is zero. ``l2`` is the
        Euclidean distance. Ties (in float32) are broken by the lower index.

        Args:
            query: the key of a record, which is excluded from its own neighbors (use ``split/key``
                if several splits have this key), or feature vectors, (D,) or (n, D).
            k: the number of neighbors per query. Fewer are returned if the run has fewer records.
            metric: ``cosine`` or ``l2``.
            layer: the layer; None for the only one.
            split: the split to search; None for all.

        Returns:
            One row per neighbor, sorted by query and rank, with the columns `query` (int64, from
            0), `rank` (int64, from 1), `index` int64, `key`, `label`, `split`, `distance` float32.

        Raises:
            InputError: the key, layer, split or measure does not exist; several records have the
                key; the query features have the wrong dimension or are not finite; or `k` is less
                than 1.
            DamagedError: a part is damaged.
            StorageError: a part cannot be read.
        """
        run = self._reader
        column, parts = run.column_of(layer), run.list_parts()
        return neighbors.neighbors(run.folder, parts, column, query, k, metric, split)

    def to_ray(self) -> Any:
        """Return a ``ray.data.Dataset`` of the parts.

        Raises:
            InputError: Ray Data is not installed.
        """
        try:
            import ray.data
        except ImportError as error:
            raise InputError("to_ray needs Ray Data: pip install 'ray_embed[ray]'") from error
        # Ray's workers have another working directory, so a local path must be absolute.
        absolute_path = str(Path(self.features_path).absolute())
        return ray.data.read_parquet(self.features_path if is_uri(self.path) else absolute_path)

    @cached_property
    def _reader(self) -> RunReader:
        return open_run(self.path)

    @cached_property
    def _dataset(self) -> Any:
        return self._read(layout.FEATURES)

    def _read(self, kind: str) -> Any:
        # This imports pandas, which a run does not need.
        import pyarrow.dataset

        run = self._reader
        paths = [run.folder.join(part_files.part_name(kind, n)) for n in run.list_parts(kind)]
        return pyarrow.dataset.dataset(paths, filesystem=run.folder.filesystem, format="parquet")


def load(run: str) -> Run:
    """Open a run folder for reading, without TensorFlow or Ray.

    Args:
        run: the run folder, a path or a URI supported by pyarrow.fs.

    Raises:
        InputError: it is not a run folder.
    """
    open_run(str(run))
    return Run(str(run))
