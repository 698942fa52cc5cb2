# SPDX-License-Identifier: Apache-2.0
"""The encoders of a job in an actor, and the encoding of the batches of a shard."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ray_embed.core.arrays import Array
from ray_embed.encoders import artifacts
from ray_embed.encoders.engines.base import OpenEngine
from ray_embed.encoders.engines.registry import open_engine
from ray_embed.encoders.probe_images import blank_batch
from ray_embed.encoders.spec import Encoder
from ray_embed.errors import InputError
from ray_embed.extraction.messages import Job, JobRun
from ray_embed.extraction.metrics import ActorMetrics
from ray_embed.extraction.shard_features import DecodedShard, ShardFeatures, allocate_features
from ray_embed.images.decode import Batch
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.planning import Shard
from ray_embed.storage.filesystem import Folder

_UNREADABLE_BY_ENCODER = "unreadable by the encoder"


@dataclass(frozen=True)
class OpenRun:
    """A run of a job whose encoder's engine is running."""

    number: int
    run: JobRun
    encoder: Encoder
    engine: OpenEngine
    meter: ActorMetrics
    is_alone: bool

    def encode_batch(self, batch: Batch, results: ShardFeatures) -> None:
        """Encode a batch, and write its features into the results.

        The only encoder of a job raises its errors; otherwise, the others go on without it.
        """
        if results.error is not None:
            return
        try:
            with self.meter.measure("computing"):
                if self.encoder.takes_bytes:
                    outputs = self._encode_files(batch, results)
                else:
                    outputs = self._encode_images(batch.images)
        except Exception as error:
            if self.is_alone:
                raise
            results.error = f"{type(error).__name__}: {error}"
            return
        for target, features in zip(results.features, outputs, strict=True):
            target[batch.positions] = features

    def _encode_images(self, images: Array) -> list[Array]:
        """Encode images, padded to a full batch; return the features of each output."""
        count, size = len(images), self.encoder.spec.batch_size
        if count < size:
            batch = blank_batch(self.encoder, size)
            batch[:count] = images
            images = batch
        return [values[:count] for values in self.engine(images)]

    def _encode_files(self, batch: Batch, results: ShardFeatures) -> list[Array]:
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


@dataclass(frozen=True)
class OpenJob:
    """A job whose engines are running."""

    job: Job
    runs: tuple[OpenRun, ...]
    threads: ThreadPoolExecutor
    concurrency: int

    def group_runs(self, numbers: Sequence[int], split: int) -> list[list[OpenRun]]:
        """Return runs in groups whose encoders take the same batches of a split's images."""
        groups: dict[tuple[PixelSpec, int], list[OpenRun]] = {}
        for number in numbers:
            run = self.runs[number]
            taken = (run.run.pixels[split], run.encoder.spec.batch_size)
            groups.setdefault(taken, []).append(run)
        return list(groups.values())


def open_job(job: Job, threads: int, meter: ActorMetrics) -> OpenJob:
    """Start the engines of all runs of a job."""
    runs = tuple(_open_run(job, number, threads, meter) for number in range(len(job.runs)))
    concurrency = max(run.engine.concurrency for run in runs)
    return OpenJob(job, runs, ThreadPoolExecutor(concurrency), concurrency)


def _open_run(job: Job, number: int, threads: int, meter: ActorMetrics) -> OpenRun:
    run = job.runs[number]
    encoder = artifacts.restore_contents(Folder.open(run.out), run.encoder)
    engine = open_engine(encoder, threads)
    return OpenRun(number, run, encoder, engine, meter, is_alone=len(job.runs) == 1)


@dataclass(frozen=True)
class EncodedShard:
    """The images of a shard as a group of runs takes them, and the results of each run."""

    images: DecodedShard
    results: list[tuple[OpenRun, ShardFeatures]]

    @classmethod
    def allocate(cls, count: int, runs: list[OpenRun]) -> "EncodedShard":
        """Return empty results for a number of records."""
        return cls(
            DecodedShard(count), [(run, allocate_features(count, run.encoder)) for run in runs]
        )

    def start(self, batch: Batch, threads: ThreadPoolExecutor) -> Iterator[Future[None]]:
        """Start to encode a batch in all runs, and yield the calls."""
        self.images.add(batch, has_pixels=not self.results[0][0].encoder.takes_bytes)
        for run, results in self.results:
            yield threads.submit(run.encode_batch, batch, results)

    def reject(self, positions: Array, count: int, rejected: dict[int, str]) -> "EncodedShard":
        """Return the results for all `count` records of a shard.

        Args:
            positions: the positions of the records that were encoded.
            count: the number of all records.
            rejected: the reject reasons of the others, by position.
        """
        scattered = [(run, results.scatter(positions, count)) for run, results in self.results]
        for _, results in scattered:
            for position, reason in rejected.items():
                results.reasons[position] = reason
        return EncodedShard(self.images.scatter(positions, count), scattered)

    def check(self, shard: Shard) -> None:
        """Reject records whose features are not finite.

        Raises:
            InputError: the only encoder takes integers, and the images are floats in [0, 1].
        """
        for run, results in self.results:
            if self.images.values is not None and run.encoder.rescaling.takes_integers:
                try:
                    _refuse_fractions(shard, self.images.values, run.encoder)
                except InputError as error:
                    if run.is_alone:
                        raise
                    results.error = str(error)
            results.reject_not_finite()


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
