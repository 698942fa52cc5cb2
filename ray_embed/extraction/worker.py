# SPDX-License-Identifier: Apache-2.0
"""The actor's work: decode → encode → pool one shard, and write its part."""

import contextlib
import itertools
import pickle
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
from ray_embed.extraction.inputs import Inputs, check_unchanged, open_inputs
from ray_embed.extraction.metrics import Meter
from ray_embed.images.decode import Batch, PixelSpec
from ray_embed.planning import Plan, Shard
from ray_embed.runtime import nodes
from ray_embed.storage import part_files
from ray_embed.storage.filesystem import Folder

# A shard, and a reference to its images where they are streamed.
Item = tuple[Shard, Any]

_NOT_FINITE, _MISSING, _REFUSED = "not finite", "missing", "unreadable by the encoder"


@dataclass(frozen=True)
class Job:
    """What all shards of a run have in common.

    `pixels` and `roots`, where the sources are, are by the ordinal of the split. `encoder` is
    without what the run folder keeps of it, which each actor reads once.
    """

    out: str
    plan: Plan
    fingerprint: str
    pixels: tuple[PixelSpec, ...]
    roots: tuple[str, ...]
    encoder: Encoder


@dataclass(frozen=True)
class Ready:
    """An extractor that is ready for a job: its number of images a batch, and its node."""

    batch_size: int
    node: str


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard.

    `brightest` is the largest value in its thumbnails, 0 to 255; `turned` is how many of its files
    have an orientation other than upright; `is_uniform` is whether several records got features
    that are all the same; `values` is the lowest and the highest value of its first float images.
    """

    number: int
    split: str
    rows: int
    rejects: dict[str, int]
    brightest: int
    turned: int
    is_uniform: bool
    values: tuple[float, float] | None
    finished: float


@dataclass
class _Gathered:
    """Features and reasons, by the record's position in the shard; batches without images."""

    features: list[Array]
    reasons: list[str | None]
    batches: list[Batch]
    values: tuple[float, float] | None = None

    def left_out(self) -> list[int]:
        """Give the positions of the records that no batch has held."""
        held = np.zeros(len(self.reasons), bool)
        for batch in self.batches:
            held[batch.positions] = True
        return np.flatnonzero(~held).tolist()

    def brightest(self) -> int:
        """Give the largest value in a thumbnail."""
        return max((int(batch.thumbnails.max()) for batch in self.batches), default=0)

    def turned(self) -> int:
        """Count the files whose orientation is another than upright."""
        return sum(int(np.count_nonzero(batch.turned)) for batch in self.batches)

    def is_uniform(self) -> bool:
        """Return whether several records got the same features, whatever is in their images."""
        kept = np.flatnonzero([reason is None for reason in self.reasons])
        if len(kept) < 2:
            return False
        return all(bool(np.all(rows[kept] == rows[kept[0]])) for rows in self.features)

    def pngs(self) -> Array:
        """Give the thumbnails by position; None where there is none."""
        found = np.full(len(self.reasons), None, object)
        for batch in self.batches:
            found[batch.positions] = list(batch.pngs())
        return found

    def spread(self, positions: Array, count: int) -> "_Gathered":
        """Put what was gathered of some records of a shard where they are among all `count`."""
        features = [np.zeros((count, values.shape[1]), np.float32) for values in self.features]
        reasons: list[str | None] = [None] * count
        for target, values in zip(features, self.features, strict=True):
            target[positions] = values
        for at, reason in zip(positions.tolist(), self.reasons, strict=True):
            reasons[at] = reason
        batches = [replace(batch, positions=positions[batch.positions]) for batch in self.batches]
        return _Gathered(features, reasons, batches, self.values)


@dataclass(frozen=True)
class _Opened:
    """A job whose encoder's engine is running; `given` is the job as it came."""

    given: bytes
    job: Job
    encoder: Encoder
    engine: OpenEngine
    threads: ThreadPoolExecutor
    meter: Meter

    def encode(self, batches: Iterable[Batch], gathered: _Gathered) -> deque[Future[None]]:
        """Encode batches as they come; gives the last ones, which may still be under way."""
        running: deque[Future[None]] = deque()
        for batch in batches:
            running.append(self.threads.submit(self.take, batch, gathered))
            if len(running) > self.engine.concurrency:
                running.popleft().result()
        return running

    def take(self, batch: Batch, gathered: _Gathered) -> None:
        """Encode a batch, padded to the one shape the engine has, and put it where it belongs."""
        with self.meter.doing("computing"):
            if self.encoder.takes_bytes:
                found = self._run_on_bytes(batch, gathered)
            else:
                found = self._run(batch.images)
        for target, values in zip(gathered.features, found, strict=True):
            target[batch.positions] = values
        gathered.batches.append(replace(batch, images=np.zeros(0)))

    def _run(self, images: Array) -> list[Array]:
        """Encode images, padded to a batch; returns the features of each output."""
        count, size = len(images), self.encoder.spec.batch_size
        if count < size:
            batch = blank_batch(self.encoder, size)
            batch[:count] = images
            images = batch
        return [values[:count] for values in self.engine(images)]

    def _run_on_bytes(self, batch: Batch, gathered: _Gathered) -> list[Array]:
        """Encode the contents of files; those that the encoder itself cannot decode are rejected.

        They are images that TensorFlow can read, but not all of its decoders read all of them.
        """
        import tensorflow as tf

        with contextlib.suppress(tf.errors.InvalidArgumentError):
            return self._run(batch.images)
        found = [
            np.zeros((len(batch.positions), output.dimension), np.float32)
            for output in self.encoder.outputs
        ]
        for number, position in enumerate(batch.positions.tolist()):
            try:
                values = self._run(batch.images[number : number + 1])
            except tf.errors.InvalidArgumentError:
                gathered.reasons[position] = _REFUSED
            else:
                for target, one in zip(found, values, strict=True):
                    target[number] = one[0]
        return found


class Extractor:
    """A process with TensorFlow that holds the encoder and extracts shards.

    Two shards may be under way at once, on two threads: one decodes while the other one computes.

    Args:
        threads: for computing, and as many for decoding.
        folder: the folder to import the user's modules from.
    """

    def __init__(self, threads: int, folder: str) -> None:
        self._threads = threads
        self._opening, self._computing = threading.Lock(), threading.Lock()
        self._opened: _Opened | None = None
        self._meter = Meter()
        start_tensorflow(threads, folder)

    def ready(self, job: bytes) -> Ready:
        """Get ready for a job, and encode a blank image."""
        opened = self._open(job)
        size = opened.encoder.spec.batch_size
        opened.engine(blank_batch(opened.encoder, size))
        return Ready(size, nodes.this_node_id())

    def attempt(self, job: bytes, shard: Shard, images: Any, start: int, stop: int) -> int:
        """Do all that extracting the records `start` to `stop` of a shard takes; keep nothing.

        Returns:
            How many of them are none to be rejected.
        """
        opened = self._open(job)
        rows = planning.read_shard(Folder.open(opened.job.out), shard.split, shard.local)
        missing = _missing(shard, rows)
        chosen = np.array([at for at in range(start, stop) if at not in missing], np.int64)
        return self._gather(opened, shard, rows, images, chosen).reasons.count(None)

    def extract(
        self, job: bytes, shard: Shard, images: Any = None, rejected: dict[int, str] | None = None
    ) -> ShardResult:
        """Extract one shard and commit its part.

        Args:
            job: the run it belongs to, a pickled Job.
            shard: which one.
            images: its images, for a streamed source.
            rejected: the reasons of records, by position in the shard, that are not to be touched.

        Raises:
            InputError: a planned file is gone, or has changed.
            StorageError: the run folder cannot be read or written, or an image not read.
        """
        opened = self._open(job)
        folder = Folder.open(opened.job.out)
        rows = planning.read_shard(folder, shard.split, shard.local)
        rejected = _missing(shard, rows) | (rejected or {})
        chosen = np.array([at for at in range(rows.num_rows) if at not in rejected], np.int64)
        gathered = self._gather(opened, shard, rows, images, chosen)
        if rejected:
            gathered = gathered.spread(chosen, rows.num_rows)
            for at, reason in rejected.items():
                gathered.reasons[at] = reason
        check_unchanged(shard, opened.job.roots[shard.split.ordinal], rows)
        records = planning.record_columns(opened.job.plan, shard, rows)
        part = _part(shard.number, opened.encoder, records, gathered)
        part_files.write_part(folder, part, opened.job.fingerprint, rows.num_rows)
        reasons = Counter(part.rejects["reason"].to_pylist())
        self._meter.done(part.features.num_rows, part.rejects.num_rows)
        return ShardResult(
            shard.number,
            shard.split.split,
            part.features.num_rows,
            dict(reasons),
            gathered.brightest(),
            gathered.turned(),
            gathered.is_uniform(),
            gathered.values,
            time.time(),
        )

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in this process: to build the encoder, or to merge parts."""
        return function(*arguments)

    def _open(self, given: bytes) -> "_Opened":
        with self._opening:
            if self._opened is None or self._opened.given != given:
                job: Job = pickle.loads(given)  # noqa: S301 - of the driver
                encoder = artifacts.restore_contents(Folder.open(job.out), job.encoder)
                engine = open_engine(encoder, self._threads)
                threads = ThreadPoolExecutor(engine.concurrency)
                self._opened = _Opened(given, job, encoder, engine, threads, self._meter)
            return self._opened

    def _gather(
        self, opened: "_Opened", shard: Shard, rows: pa.Table, images: Any, chosen: Array
    ) -> _Gathered:
        """Encode the chosen records of a shard, by their positions among `rows`."""
        ordinal = shard.split.ordinal
        pixels, root = opened.job.pixels[ordinal], opened.job.roots[ordinal]
        inputs = open_inputs(shard, root, rows, images, chosen, pixels)
        values = inputs.range_of_floats()
        if values is not None and opened.encoder.rescaling.takes_integers:
            _refuse_fractions(shard, values, opened.encoder)
        batches = self._meter.waiting_for(
            inputs.batches(pixels, opened.encoder.spec.batch_size, self._threads)
        )
        # Decoding starts with the first batch asked for; the other shard may compute meanwhile.
        first = next(batches, None)
        gathered = _gathered(len(inputs), opened.encoder)
        gathered.values = values
        with self._computing:
            encoding = opened.encode(itertools.chain([first] if first else [], batches), gathered)
        # The other shard's batches queue up behind the last ones of this one.
        for waited in encoding:
            waited.result()
        inputs.check()
        _take_left_out(inputs, pixels, opened, gathered)
        self._meter.read(inputs.size)
        return gathered


def _take_left_out(inputs: Inputs, pixels: PixelSpec, opened: _Opened, gathered: _Gathered) -> None:
    """Encode what was left out after all, or say why not."""
    for at in gathered.left_out():
        found = inputs.diagnose(at, pixels)
        if isinstance(found, str):
            gathered.reasons[at] = found
        else:
            opened.threads.submit(
                opened.take, replace(found, positions=np.array([at])), gathered
            ).result()
    finite = np.logical_and.reduce([np.isfinite(f).all(axis=1) for f in gathered.features])
    for at in np.flatnonzero(~finite).tolist():
        gathered.reasons[at] = gathered.reasons[at] or _NOT_FINITE


def _refuse_fractions(shard: Shard, values: tuple[float, float], encoder: Encoder) -> None:
    """Refuse float images that casting to the encoder's integers would leave nothing of.

    Raises:
        InputError: they are not levels from 0 to 255.
    """
    low, high = values
    if high <= 1:
        raise InputError(
            f"--source {shard.split.split}={shard.split.root}: its images are floats from "
            f"{low:.3g} to {high:.3g}, but the encoder takes {encoder.rescaling.dtype}; give "
            "uint8 arrays, or floats from 0 to 255"
        )


def _gathered(count: int, encoder: Encoder) -> _Gathered:
    features = [np.zeros((count, output.dimension), np.float32) for output in encoder.outputs]
    return _Gathered(features, [None] * count, [])


def _missing(shard: Shard, rows: pa.Table) -> dict[int, str]:
    """Give the reasons of records that were not there when planned, by their positions."""
    planned = rows["size"].to_pylist() if shard.split.kind == "files" else []
    return {at: _MISSING for at, size in enumerate(planned) if size is None}


def _part(number: int, encoder: Encoder, records: pa.Table, gathered: _Gathered) -> part_files.Part:
    kept = np.array([reason is None for reason in gathered.reasons], bool)
    features = records.filter(pa.array(kept))
    for output, values in zip(encoder.outputs, gathered.features, strict=True):
        features = features.append_column(output.column, as_column(values[kept]))
    rejected = records.filter(pa.array(~kept)).select(["index", "key", "split"])
    reasons = [reason for reason in gathered.reasons if reason is not None]
    rejected = rejected.append_column("reason", pa.array(reasons, pa.string()))
    pngs = pa.array(gathered.pngs()[kept], pa.binary())
    thumbnails = pa.table([features["index"], pngs], part_files.THUMBNAIL_SCHEMA)
    return part_files.Part(number, features, rejected.cast(part_files.REJECT_SCHEMA), thumbnails)
