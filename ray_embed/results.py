# SPDX-License-Identifier: Apache-2.0
"""Reads a run folder: features and labels for whoever asks, without TensorFlow or Ray."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from ray_embed.analysis import neighbors
from ray_embed.core.arrays import as_matrix
from ray_embed.core.uri import is_uri, join_uri, redact_uri
from ray_embed.errors import InputError
from ray_embed.projector import pca
from ray_embed.runs.reader import RunReader, open_run
from ray_embed.storage import layout, part_files

if TYPE_CHECKING:
    from ray_embed.analysis.evaluation.evaluate import Evaluation
    from ray_embed.analysis.evaluation.label_kind import LabelKind


@dataclass(frozen=True)
class Run:
    """A run folder: where its results are, and ways to take them into memory.

    Made by :func:`ray_embed.load` and :func:`ray_embed.run`.
    """

    path: str

    @property
    def features_path(self) -> str:
        """The folder of the Parquet parts with keys, labels and features."""
        return join_uri(self.path, layout.FEATURES)

    @property
    def projector_path(self) -> str:
        """The folder for ``tensorboard --logdir``; there after `run` or `reduce`."""
        return join_uri(self.path, layout.PROJECTOR)

    @property
    def pca_path(self) -> str:
        """The folder of the Parquet parts with PCA coordinates; there as `projector_path` is."""
        return join_uri(self.path, layout.PCA)

    @cached_property
    def rows(self) -> int:
        """The number of embedded records.

        Raises:
            DamagedError: a part is not what was written.
            StorageError: a part cannot be read.
        """
        try:
            return int(self._dataset.count_rows())
        except (OSError, pa.ArrowException):
            # One after the other, for a word on which of them it is.
            folder = self._reader.folder
            return sum(
                part_files.read_footer(folder, n).rows for n in part_files.list_part_numbers(folder)
            )

    @cached_property
    def rejects(self) -> int:
        """The number of records that were set aside; the reasons are in ``rejects/``."""
        return sum(self.rejects_by_reason.values())

    @cached_property
    def rejects_by_reason(self) -> dict[str, int]:
        """The number of rejects for each reason, the commonest first."""
        return part_files.count_rejects(self._reader.folder)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose features are there, as `to_numpy` takes them."""
        return self._reader.layers

    def to_numpy(
        self, layer: str | None = None
    ) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[Any]]]:
        """Give the features and labels of all embedded records, in order.

        Args:
            layer: which layer's features, where there are several.

        Returns:
            features (N, D) float32, and labels (N,) object, None where there is no label.

        Raises:
            InputError: no such layer, or several and none named.
        """
        column = self._reader.column_of(layer)
        table = self._dataset.to_table(columns=["label", column])
        labels = np.empty(table.num_rows, object)
        labels[:] = table["label"].to_pylist()
        return as_matrix(table[column]), labels

    def to_pca(self, layer: str | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Give the first coordinates (N, k) float32 of all embedded records, in order.

        They are those of a PCA of all of them; k is 50, or fewer where there are no more. It is
        exact up to 8,192 dimensions or 4,096 records, else approximate: the residuals of its
        components are in the metadata of ``pca.parquet``.

        Args:
            layer: which layer's, where there are several.

        Raises:
            InputError: no such layer, or several and none named; or there is no PCA.
        """
        column, folder = self._reader.column_of(layer), self._reader.folder
        pca.load(folder, column)
        parts = list(part_files.list_part_numbers(folder))
        if list(part_files.list_part_numbers(folder, layout.PCA)) != parts:
            name = redact_uri(self.path)
            raise InputError(f"{name}: not all is reduced; `ray-embed reduce {name}` does it")
        name = layout.pca_column(column)
        return as_matrix(self._read(layout.PCA).to_table(columns=[name])[name])

    def explained_variance(self, layer: str | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Give the share (c,) of each principal component in the variance, the largest first.

        Up to 8,192 dimensions of all D of them; above, of the N - 1 that N records span, or where
        there are more than 4,096 records of the first 50.

        Args:
            layer: which layer's, where there are several.

        Raises:
            InputError: as `to_pca` raises.
        """
        return pca.load(self._reader.folder, self._reader.column_of(layer)).ratios

    def evaluate(
        self,
        layer: str | None = None,
        sample: int = 10_000,
        labels: "LabelKind | None" = None,
    ) -> "dict[str, Evaluation]":
        """Judge the features, beside raw pixels, as `ray-embed evaluate` does; writes nothing.

        Args:
            layer: which layer; None for all.
            sample: how many records at most are judged, drawn by split and label with a fixed
                seed.
            labels: whether labels that are numbers are "classes" or "values"; None for classes
                where they are whole numbers, or floats that are all whole and of at most 50 values.

        Returns:
            what was found of each layer.

        Raises:
            InputError: shards are missing, there is no such layer or no record, features are not
                finite, or labels that are no numbers are to be values.
            DamagedError: a part is not what was written.
            StorageError: a part cannot be read.
        """
        from ray_embed.analysis.evaluation.evaluate import evaluate

        return evaluate(self._reader, layer, sample, labels=labels)

    def to_table(self) -> pa.Table:
        """Give all parts as one Arrow table, in order."""
        return self._dataset.to_table()

    def to_pandas(self) -> Any:
        """Give all parts as a pandas DataFrame; `feature` holds one array a row.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            return self.to_table().to_pandas()
        except ImportError as error:
            raise InputError("to_pandas needs pandas: pip install 'ray_embed[pandas]'") from error

    def to_tf(self, layer: str | None = None, batch_size: int = 1024) -> Any:
        """Give a ``tf.data.Dataset`` of (features (n, D) float32, labels (n,)), read as it goes.

        Labels that are null come as -1, NaN, False or "".

        Args:
            layer: which layer's features, where there are several.
            batch_size: the most rows of an element.
        """
        import tensorflow as tf

        column = self._reader.column_of(layer)
        schema = self._dataset.schema
        label = schema.field("label").type
        missing, kind = {
            pa.int64(): (-1, tf.int64),
            pa.float64(): (float("nan"), tf.float64),
            pa.bool_(): (False, tf.bool),
        }.get(label, ("", tf.string))

        def batches() -> Any:
            columns = [column, "label"]
            for batch in self._dataset.to_batches(columns=columns, batch_size=batch_size):
                if batch.num_rows:
                    table = pa.Table.from_batches([batch])
                    labels = table["label"].fill_null(missing).to_pylist()
                    yield as_matrix(table[column]), labels

        dimension = schema.field(column).type.list_size
        return tf.data.Dataset.from_generator(
            batches,
            output_signature=(
                tf.TensorSpec((None, dimension), tf.float32),
                tf.TensorSpec((None,), kind),
            ),
        )

    def neighbors(
        self,
        query: str | np.ndarray[Any, Any],
        k: int = 10,
        metric: str = "cosine",
        layer: str | None = None,
        split: str | None = None,
    ) -> pa.Table:
        """Find the nearest records of a record, or of features, reading a part at a time.

        Cosine distance is 1 - cos, in [0, 2], and 1 where a vector is zero; ``l2`` is the Euclidean
        distance. Of equal distances, in float32, the lower index comes first.

        Args:
            query: the key of a record, which is then no neighbour of its own (``split/key`` where
                several splits have the key); or features (D,) or (n, D), of any records or none.
            k: how many neighbours of each query; fewer where there are no more records.
            metric: ``cosine`` or ``l2``.
            layer: which layer's features, where there are several.
            split: of which the neighbours are; None for all.

        Returns:
            a row a neighbour, by query and rank: `query` int64 from 0, `rank` int64 from 1,
            `index` int64, `key`, `label`, `split`, `distance` float32.

        Raises:
            InputError: no such key, layer, split or metric, a key of several records, features of
                another dimension or not finite, or `k` is less than 1.
            DamagedError: a part is not what was written.
            StorageError: a part cannot be read.
        """
        run = self._reader
        column, parts = run.column_of(layer), run.list_parts()
        return neighbors.neighbors(run.folder, parts, column, query, k, metric, split)

    def to_ray(self) -> Any:
        """Give a ``ray.data.Dataset`` of the parts.

        Raises:
            InputError: Ray Data is not installed.
        """
        try:
            import ray.data
        except ImportError as error:
            raise InputError("to_ray needs Ray Data: pip install 'ray_embed[ray]'") from error
        local = str(Path(self.features_path).absolute())
        # Ray's workers run in other folders.
        return ray.data.read_parquet(self.features_path if is_uri(self.path) else local)

    @cached_property
    def _reader(self) -> RunReader:
        return open_run(self.path)

    @cached_property
    def _dataset(self) -> Any:
        return self._read(layout.FEATURES)

    def _read(self, kind: str) -> Any:
        run = self._reader
        paths = [run.folder.join(part_files.part_name(kind, n)) for n in run.list_parts(kind)]
        return pyarrow.dataset.dataset(paths, filesystem=run.folder.filesystem, format="parquet")


def load(run: str) -> Run:
    """Open a run folder for reading; needs neither TensorFlow nor Ray.

    Args:
        run: the run folder, a path or any URI that pyarrow.fs opens.

    Raises:
        InputError: it is no run folder.
    """
    open_run(str(run))
    return Run(str(run))
