# SPDX-License-Identifier: Apache-2.0
"""The actor's work: decode, encode and pool the images of one shard, and write its part."""

import contextlib
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed import planning
from ray_embed.core.arrays import Array, as_column
from ray_embed.encoders import artifacts
from ray_embed.encoders.engines.base import OpenEngine
from ray_embed.encoders.engines.registry import open_engine
from ray_embed.encoders.probe_images import blank_batch
from ray_embed.encoders.spec import Encoder
from ray_embed.encoders.tensorflow_setup import start_tensorflow
from ray_embed.errors import InputError
from ray_embed.extraction.messages import Job, Ready, ShardResult
from ray_embed.extraction.metrics import ActorMetrics
from ray_embed.extraction.plan_rows import record_rows
from ray_embed.images.decode import Batch
from ray_embed.planning import Shard
from ray_embed.runtime import nodes
from ray_embed.sources.base import PlannedRecords, ShardImages, find_missing
from ray_embed.sources.dataset_shards import join_images
from ray_embed.sources.indexed_records import IndexedReader
from ray_embed.storage import part_files
from ray_embed.storage.filesystem import Folder

_NOT_FINITE, _MISSING, _UNREADABLE_BY_ENCODER = "not finite", "missing", "unreadable by the encoder"


@dataclass
class _Results:
    """Features and reject reasons by record number, encoded batches without their images, and the
    ranges of float images."""

    features: list[Array]
    reasons: list[str | None]
    batches: list[Batch]
    ranges: list[tuple[float, float]]

    @property
    def values(self) -> tuple[float, float] | None:
        """The range of all float images, or None if there are none."""
        if not self.ranges:
            return None
        lows, highs = zip(*self.ranges, strict=True)
        return min(lows), max(highs)

    def find_undecoded(self) -> list[int]:
        """Return the records that were in no batch."""
        decoded = np.zeros(len(self.reasons), bool)
        for batch in self.batches:
            decoded[batch.positions] = True
        return np.flatnonzero(~decoded).tolist()

    def find_brightest(self) -> int:
        """Return the largest value in a thumbnail."""
        return max((int(batch.thumbnails.max()) for batch in self.batches), default=0)

    def count_turned(self) -> int:
        """Return the number of files with an orientation other than upright."""
        return sum(int(np.count_nonzero(batch.turned)) for batch in self.batches)

    def count_reduced(self) -> int:
        """Return the number of images that were reduced to 8 bits."""
        return sum(int(np.count_nonzero(batch.reduced)) for batch in self.batches)

    def count_passed_over(self) -> int:
        """Return the number of pages that were passed over."""
        return sum(int(np.sum(batch.passed_over)) for batch in self.batches)

    def is_uniform(self) -> bool:
        """Return whether there are at least two kept records and all have the same features."""
        kept = np.flatnonzero([reason is None for reason in self.reasons])
        if len(kept) < 2:
            return False
        return all(bool(np.all(rows[kept] == rows[kept[0]])) for rows in self.features)

    def encode_thumbnails(self) -> Array:
        """Return the thumbnail of each record as PNG, or None for a record without one."""
        pngs = np.full(len(self.reasons), None, object)
        for batch in self.batches:
            pngs[batch.positions] = list(batch.encode_thumbnails())
        return pngs

    def scatter(self, positions: Array, count: int) -> "_Results":
        """Return the results with records moved to their positions among all `count` of a shard."""
        features = [np.zeros((count, values.shape[1]), np.float32) for values in self.features]
        reasons: list[str | None] = [None] * count
        for target, values in zip(features, self.features, strict=True):
            target[positions] = values
        for position, reason in zip(positions.tolist(), self.reasons, strict=True):
            reasons[position] = reason
        batches = [replace(batch, positions=positions[batch.positions]) for batch in self.batches]
        return _Results(features, reasons, batches, self.ranges)


@dataclass(frozen=True)
class _OpenJob:
    """A job whose encoder's engine is running."""

    job: Job
    encoder: Encoder
    engine: OpenEngine
    threads: ThreadPoolExecutor
    meter: ActorMetrics

    def encode(self, batches: Iterable[Batch], results: _Results) -> deque[Future[None]]:
        """Encode batches as they arrive; return the last calls, which may still be running."""
        running: deque[Future[None]] = deque()
        for batch in batches:
            running.append(self.threads.submit(self.encode_batch, batch, results))
            if len(running) > self.engine.concurrency:
                running.popleft().result()
        return running

    def encode_batch(self, batch: Batch, results: _Results) -> None:
        """Encode a batch, and write its features into the results."""
        with self.meter.measure("computing"):
            if self.encoder.takes_bytes:
                outputs = self._encode_files(batch, results)
            else:
                outputs = self._encode_images(batch.images)
                if len(values := batch.images[batch.unscaled]):
                    results.ranges.append((float(values.min()), float(values.max())))
        for target, features in zip(results.features, outputs, strict=True):
            target[batch.positions] = features
        results.batches.append(replace(batch, images=np.zeros(0)))

    def _encode_images(self, images: Array) -> list[Array]:
        """Encode images, padded to a full batch; return the features of each output."""
        count, size = len(images), self.encoder.spec.batch_size
        if count < size:
            batch = blank_batch(self.encoder, size)
            batch[:count] = images
            images = batch
        return [values[:count] for values in self.engine(images)]

    def _encode_files(self, batch: Batch, results: _Results) -> list[Array]:
        """Encode the contents of files; reject those that the encoder itself cannot decode.

        TensorFlow has decoded all of them, but its decoders differ in which images they can read.
        """
        import tensorflow as tf

        with contextlib.suppress(tf.errors.InvalidArgumentError):
            return self._encode_images(batch.images)
        features = [
            np.zeros((len(batch.positions), output.dimension), np.float32)
            for output in self.encoder.outputs
        ]
        for number, position in enumerate(batch.positions.tolist()):
            try:
                outputs = self._encode_images(batch.images[number : number + 1])
            except tf.errors.InvalidArgumentError:
                results.reasons[position] = _UNREADABLE_BY_ENCODER
            else:
                for target, values in zip(features, outputs, strict=True):
                    target[number] = values[0]
        return features


class Extractor:
    """A process with TensorFlow that holds the encoder and extracts shards.

    Two shards may be in progress at once, on two threads: one decodes while the other computes.

    Args:
        threads: the number of threads for computing, and also the number for decoding.
        folder: the folder to import the user's modules from.
    """

    def __init__(self, threads: int, folder: str) -> None:
        self._threads = threads
        self._opening, self._computing = threading.Lock(), threading.Lock()
        self._opened: _OpenJob | None = None
        self._meter = ActorMetrics()
        start_tensorflow(threads, folder)

    def ready(self, job: Job) -> Ready:
        """Prepare for a job, before its shards are sent, and encode a blank image."""
        opened = self._open(job)
        size = opened.encoder.spec.batch_size
        opened.engine(blank_batch(opened.encoder, size))
        return Ready(size, nodes.get_node_id())

    def try_records(self, shard: Shard, images: Any, start: int, stop: int) -> int:
        """Extract the records `start` to `stop` of a shard without writing anything.

        Returns:
            The number of these records that are not rejected.
        """
        opened = self._get_opened()
        records = _read_records(opened.job, shard, images)
        chosen = np.setdiff1d(np.arange(start, stop), find_missing(records.rows))
        return self._encode_records(opened, shard, records.select(chosen)).reasons.count(None)

    def extract(
        self, shard: Shard, images: Any = None, rejected: dict[int, str] | None = None
    ) -> ShardResult:
        """Extract one shard and commit its part.

        Args:
            shard: the shard.
            images: the images of its elements, if a sequential source delivered them.
            rejected: the records to reject without extracting them: reasons by position in the
                shard.

        Raises:
            InputError: a planned file is missing, or has changed.
            StorageError: the run folder cannot be read or written, or an image cannot be read.
        """
        opened = self._get_opened()
        records = _read_records(opened.job, shard, images)
        rejected = dict.fromkeys(find_missing(records.rows), _MISSING) | (rejected or {})
        chosen = np.setdiff1d(np.arange(len(records)), list(rejected))
        results = self._encode_records(opened, shard, records.select(chosen))
        if rejected:
            results = results.scatter(chosen, len(records))
            for position, reason in rejected.items():
                results.reasons[position] = reason
        opened.job.readers[shard.split.ordinal].verify(records.rows)
        columns = planning.make_record_columns(opened.job.plan, shard, records.rows)
        part = _make_part(shard.number, opened.encoder, columns, results)
        folder = Folder.open(opened.job.out)
        part_files.write_part(folder, part, opened.job.fingerprint, len(records))
        reasons = Counter(part.rejects["reason"].to_pylist())
        self._meter.report_shard(part.features.num_rows, part.rejects.num_rows)
        return ShardResult(
            number=shard.number,
            split=shard.split.name,
            rows=part.features.num_rows,
            rejects=dict(reasons),
            brightest=results.find_brightest(),
            turned=results.count_turned(),
            reduced=results.count_reduced(),
            passed_over=results.count_passed_over(),
            is_uniform=results.is_uniform(),
            values=results.values,
            finished=time.time(),
        )

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in this process, for example to build the encoder or merge parts."""
        return function(*arguments)

    def _get_opened(self) -> "_OpenJob":
        assert self._opened is not None  # noqa: S101 - `ready` comes first
        return self._opened

    def _open(self, job: Job) -> "_OpenJob":
        with self._opening:
            if self._opened is None or self._opened.job.id != job.id:
                encoder = artifacts.restore_contents(Folder.open(job.out), job.encoder)
                engine = open_engine(encoder, self._threads)
                threads = ThreadPoolExecutor(engine.concurrency)
                self._opened = _OpenJob(job, encoder, engine, threads, self._meter)
            return self._opened

    def _encode_records(
        self, opened: "_OpenJob", shard: Shard, records: PlannedRecords
    ) -> _Results:
        """Encode records of a shard; return the results."""
        ordinal = shard.split.ordinal
        images = opened.job.readers[ordinal].open(records, opened.job.pixels[ordinal])
        values = images.find_value_range()
        batches = self._meter.measure_waiting(
            images.batches(opened.encoder.spec.batch_size, self._threads)
        )
        # Decoding starts when the first batch is requested; the other shard may compute meanwhile.
        first = next(batches, None)
        results = _allocate_results(len(images), opened.encoder)
        if values is not None:
            results.ranges.append(values)
        with self._computing:
            running = opened.encode(itertools.chain([first] if first else [], batches), results)
        # Wait outside the lock, so that the other shard can queue its batches behind these.
        for call in running:
            call.result()
        _diagnose_undecoded(images, opened, results)
        if results.values is not None and opened.encoder.rescaling.takes_integers:
            _refuse_fractions(shard, results.values, opened.encoder)
        _reject_not_finite(results)
        self._meter.report_read(images.size)
        return results


def _read_records(job: Job, shard: Shard, images: Any) -> PlannedRecords:
    """Read the planned records of a shard, with its `images` from a sequential source, if any.

    The records of a dataset that is read by position are planned now.
    """
    folder, reader = Folder.open(job.out), job.readers[shard.split.ordinal]
    if isinstance(reader, IndexedReader):
        read = reader.read(shard.position, shard.records)
        record_rows(folder, shard.split, shard.local, read)
        rows, images = read.rows, read.images
    else:
        rows = planning.read_shard(folder, shard.split, shard.local)
        images = None if images is None else join_images(images)
    positions = np.arange(shard.position, shard.position + rows.num_rows)
    return PlannedRecords(rows=rows, positions=positions, images=images)


def _diagnose_undecoded(images: ShardImages, opened: _OpenJob, results: _Results) -> None:
    """Find out why each undecoded image was not decoded, or encode the image after all."""
    for number in results.find_undecoded():
        diagnosis = images.diagnose(number)
        if isinstance(diagnosis, str):
            results.reasons[number] = diagnosis
        else:
            batch = replace(diagnosis, positions=np.array([number]))
            opened.threads.submit(opened.encode_batch, batch, results).result()


def _reject_not_finite(results: _Results) -> None:
    """Reject the records with a feature that is not finite."""
    finite = np.logical_and.reduce([np.isfinite(f).all(axis=1) for f in results.features])
    for number in np.flatnonzero(~finite).tolist():
        results.reasons[number] = results.reasons[number] or _NOT_FINITE


def _refuse_fractions(shard: Shard, values: tuple[float, float], encoder: Encoder) -> None:
    """Refuse float images in [0, 1] for an encoder that takes integers.

    Raises:
        InputError: the values are not levels from 0 to 255.
    """
    low, high = values
    if high <= 1:
        raise InputError(
            f"--source {shard.split.name}={shard.split.root}: its images are floats from "
            f"{low:.3g} to {high:.3g}, but the encoder takes {encoder.rescaling.dtype}; give "
            "uint8 arrays, or floats from 0 to 255"
        )


def _allocate_results(count: int, encoder: Encoder) -> _Results:
    features = [np.zeros((count, output.dimension), np.float32) for output in encoder.outputs]
    return _Results(features, [None] * count, [], [])


def _make_part(
    number: int, encoder: Encoder, records: pa.Table, results: _Results
) -> part_files.Part:
    kept = np.array([reason is None for reason in results.reasons], bool)
    features = records.filter(pa.array(kept))
    for output, values in zip(encoder.outputs, results.features, strict=True):
        features = features.append_column(output.column, as_column(values[kept]))
    rejected = records.filter(pa.array(~kept)).select(["index", "key", "split"])
    reasons = [reason for reason in results.reasons if reason is not None]
    rejected = rejected.append_column("reason", pa.array(reasons, pa.string()))
    pngs = pa.array(results.encode_thumbnails()[kept], pa.binary())
    thumbnails = pa.table([features["index"], pngs], part_files.THUMBNAIL_SCHEMA)
    return part_files.Part(number, features, rejected.cast(part_files.REJECT_SCHEMA), thumbnails)
