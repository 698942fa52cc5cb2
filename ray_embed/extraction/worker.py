# SPDX-License-Identifier: Apache-2.0
"""The actor's work: decode, encode and pool the images of one shard, and write its parts."""

import contextlib
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed import planning
from ray_embed.core.imported_code import ImportedCode
from ray_embed.encoders import keras_state
from ray_embed.encoders.probe_images import blank_batch
from ray_embed.encoders.tensorflow_setup import start_tensorflow
from ray_embed.extraction.messages import Job, Ready, ShardResult
from ray_embed.extraction.metrics import ActorMetrics
from ray_embed.extraction.open_job import EncodedShard, OpenJob, OpenRun, open_job
from ray_embed.extraction.plan_rows import record_rows
from ray_embed.extraction.shard_features import make_part
from ray_embed.planning import Shard
from ray_embed.runtime import nodes
from ray_embed.sources.base import PlannedRecords, ShardImages, find_missing
from ray_embed.sources.dataset_shards import join_images
from ray_embed.sources.indexed_records import IndexedReader
from ray_embed.storage import part_files
from ray_embed.storage.filesystem import Folder

_MISSING = "missing"


class Extractor:
    """A process with TensorFlow that holds the encoders of a job and extracts shards.

    Two shards may be in progress at once, on two threads: one decodes while the other computes.

    Args:
        threads: the number of threads for computing, and also the number for decoding.
        folder: the folder to import the user's modules from.
    """

    def __init__(self, threads: int, folder: str) -> None:
        self._threads = threads
        self._opening, self._computing = threading.Lock(), threading.Lock()
        self._noting = threading.Lock()
        self._opened: OpenJob | None = None
        self._meter = ActorMetrics()
        start_tensorflow(threads, folder)
        self._code = ImportedCode()
        self._calls = 0
        self._has_default_keras = True

    def ready(self, job: Job) -> Ready:
        """Prepare for a job, before its shards are sent, and encode a blank image."""
        with self._note_call():
            opened = self._open(job)
            for run in opened.runs:
                run.engine(blank_batch(run.encoder, run.encoder.spec.batch_size))
            return Ready(opened.runs[0].encoder.spec.batch_size, nodes.get_node_id())

    def try_records(
        self, shard: Shard, images: Any, runs: Sequence[int], start: int, stop: int
    ) -> int:
        """Extract the records `start` to `stop` of a shard without writing anything.

        Returns:
            The number of these records that are not rejected by any of the runs.
        """
        opened = self._get_opened()
        records = _read_records(opened.job, shard, images, runs)
        chosen = np.setdiff1d(np.arange(start, stop), find_missing(records.rows))
        encoded = self._encode_records(opened, shard, records.select(chosen), runs)
        return min(results.reasons.count(None) for group in encoded for _, results in group.results)

    def extract(
        self,
        shard: Shard,
        images: Any = None,
        runs: Sequence[int] = (0,),
        rejected: dict[int, str] | None = None,
    ) -> list[ShardResult]:
        """Extract one shard and commit its part in each of the runs.

        Args:
            shard: the shard.
            images: the images of its elements, if a sequential source delivered them.
            runs: the positions of the runs in `Job.runs`.
            rejected: the records to reject without extracting them: reasons by position in the
                shard.

        Raises:
            InputError: a planned file is missing, or has changed.
            StorageError: a run folder cannot be read or written, or an image cannot be read.
        """
        with self._note_call():
            return self._extract(shard, images, runs, rejected or {})

    def _extract(
        self, shard: Shard, images: Any, runs: Sequence[int], rejected: dict[int, str]
    ) -> list[ShardResult]:
        opened = self._get_opened()
        records = _read_records(opened.job, shard, images, runs)
        rejected = dict.fromkeys(find_missing(records.rows), _MISSING) | rejected
        chosen = np.setdiff1d(np.arange(len(records)), list(rejected))
        encoded = self._encode_records(opened, shard, records.select(chosen), runs)
        if rejected:
            encoded = [group.reject(chosen, len(records), rejected) for group in encoded]
        opened.job.readers[shard.split.ordinal].verify(records.rows)
        columns = planning.make_record_columns(opened.job.plan, shard, records.rows)
        written = [
            result for group in encoded for result in _write_parts(opened, shard, columns, group)
        ]
        self._meter.report_shard(written[0].rows, sum(written[0].rejects.values()))
        return written

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in this process, for example to build the encoder or merge parts."""
        with self._note_call():
            return function(*arguments)

    def reuse(self, folder: str) -> bool:
        """Prepare for another run, in a folder.

        Returns:
            False if the run needs a new process, because it could notice that this one is not new.
        """
        with self._noting:
            if self._calls or not self._has_default_keras:
                return False
            if not self._code.prepare_for_run(folder):
                return False
            self._opened = None
        keras_state.forget_models()
        return True

    @contextlib.contextmanager
    def _note_call(self) -> Iterator[None]:
        """Count a call in progress, and note whether it changes Keras's settings."""
        with self._noting:
            self._calls += 1
        try:
            yield
        finally:
            is_default = keras_state.are_settings_default()
            with self._noting:
                self._calls -= 1
                self._has_default_keras &= is_default

    def _get_opened(self) -> OpenJob:
        assert self._opened is not None  # noqa: S101 - `ready` comes first
        return self._opened

    def _open(self, job: Job) -> OpenJob:
        with self._opening:
            if self._opened is None or self._opened.job.id != job.id:
                self._opened = open_job(job, self._threads, self._meter)
            return self._opened

    def _encode_records(
        self, opened: OpenJob, shard: Shard, records: PlannedRecords, numbers: Sequence[int]
    ) -> list[EncodedShard]:
        """Encode records of a shard; return the results."""
        groups = opened.group_runs(numbers, shard.split.ordinal)
        return [self._encode_group(opened, shard, records, runs) for runs in groups]

    def _encode_group(
        self, opened: OpenJob, shard: Shard, records: PlannedRecords, runs: list[OpenRun]
    ) -> EncodedShard:
        ordinal = shard.split.ordinal
        images = opened.job.readers[ordinal].open(records, runs[0].run.pixels[ordinal])
        values = images.find_value_range()
        batches = self._meter.measure_waiting(
            images.batches(runs[0].encoder.spec.batch_size, self._threads)
        )
        # Decoding starts when the first batch is requested; the other shard may compute meanwhile.
        first = next(batches, None)
        encoded = EncodedShard.allocate(len(images), runs)
        if values is not None:
            encoded.images.ranges.append(values)
        running: deque[Future[None]] = deque()
        with self._computing:
            for batch in itertools.chain([first] if first else [], batches):
                running.extend(encoded.start(batch, opened.threads))
                while len(running) > opened.concurrency * len(runs):
                    running.popleft().result()
        # Wait outside the lock, so that the other shard can queue its batches behind these.
        for call in running:
            call.result()
        _diagnose_undecoded(images, opened, encoded)
        encoded.check(shard)
        self._meter.report_read(images.size)
        return encoded


def _read_records(job: Job, shard: Shard, images: Any, runs: Sequence[int]) -> PlannedRecords:
    """Read the planned records of a shard, with its `images` from a sequential source, if any.

    The records of a dataset that is read by position are planned now, in each run.
    """
    folders = [Folder.open(job.runs[number].out) for number in runs]
    reader = job.readers[shard.split.ordinal]
    if isinstance(reader, IndexedReader):
        read = reader.read(shard.position, shard.records)
        for folder in folders:
            record_rows(folder, shard.split, shard.local, read)
        rows, images = read.rows, read.images
    else:
        rows = planning.read_shard(folders[0], shard.split, shard.local)
        images = None if images is None else join_images(images)
    positions = np.arange(shard.position, shard.position + rows.num_rows)
    return PlannedRecords(rows=rows, positions=positions, images=images)


def _diagnose_undecoded(images: ShardImages, opened: OpenJob, encoded: EncodedShard) -> None:
    """Find out why each undecoded image was not decoded, or encode the image after all."""
    for number in encoded.images.find_undecoded():
        diagnosis = images.diagnose(number)
        if isinstance(diagnosis, str):
            for _, results in encoded.results:
                results.reasons[number] = diagnosis
        else:
            batch = replace(diagnosis, positions=np.array([number]))
            for call in list(encoded.start(batch, opened.threads)):
                call.result()


def _write_parts(
    opened: OpenJob, shard: Shard, columns: pa.Table, encoded: EncodedShard
) -> Iterator[ShardResult]:
    """Write the part of a shard in each run, and yield the results."""
    pngs = encoded.images.encode_thumbnails()
    folders = [
        Folder.open(out) for out in (*(run.out for run in opened.job.runs), *opened.job.siblings)
    ]
    # What the images alone decide is the same in each run.
    seen = ShardResult(
        number=shard.number,
        split=shard.split.name,
        rows=0,
        rejects={},
        brightest=encoded.images.find_brightest(),
        turned=encoded.images.count_turned(),
        reduced=encoded.images.count_reduced(),
        passed_over=encoded.images.count_passed_over(),
        is_uniform=False,
        values=encoded.images.values,
        finished=0.0,
    )
    for run, results in encoded.results:
        part = make_part(shard.number, run.encoder, columns, results, pngs)
        if results.error is None:
            folder = folders[run.number]
            others = [other for other in folders if other != folder]
            part_files.write_part(folder, part, run.run.owner, columns.num_rows, others)
        yield replace(
            seen,
            run=run.number,
            error=results.error,
            rows=part.features.num_rows,
            rejects=dict(Counter(part.rejects["reason"].to_pylist())),
            is_uniform=results.is_uniform(),
            finished=time.time(),
        )
